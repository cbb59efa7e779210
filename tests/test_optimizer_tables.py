"""The guide to optimizers shows the tables that other tests run over."""

from guides import assert_shown, table
from test_stated_problem import RIGHT, SETTINGS
from test_wrappers import WRAPPERS, assert_some_zeros
from transform_cases import TRANSFORMS

HOW = {
    "gradients alone": "`add_penalty_gradients(rules)`",
    "coupled, SGD": "`chain(add_penalty_gradients(rules), sgd(rate))`",
    "coupled, Adam": "`chain(add_penalty_gradients(rules), adam(rate))`",
    "decoupled, Adam": "`chain(scale_by_adam(), add_penalty_gradients(rules), scale_by_learning_rate(rate))`",
    "decoupled around Adam": "`decoupled(adam(rate), rules, rate)`",
    "proximal, SGD": "`proximal(sgd(rate), rules, rate)`",
    "proximal, Adam": '`proximal(adam(rate), rules, rate, metric="euclidean")`',
    "proximal, Adam in its metric": '`proximal(adam(rate), rules, rate, metric="adam")`',
}


def test_the_transforms():
    rows = [
        (
            row.name,
            HOW[row.name],
            f"`{row.state.__name__}`",
            "yes" if row.zeros else "no",
            "the wider one of update and parameter" if row.widens else "that of the update",
            "yes" if row.takes_narrow else "no: cast them first",
        )
        for row in TRANSFORMS
    ]
    header = ("name", "written", "state", "exact zeros", "dtype of updates", "narrow gradients in `apply_if_finite`")
    assert_shown("optimizers.md", table(header, rows))


def test_the_wrappers():
    def cell(wrapper, row):
        if not row.zeros:
            return "yes"
        return "yes, with most zeros" if wrapper.zeros is assert_some_zeros else "yes, with zeros"

    rows = [(name, *(cell(wrapper, row) for row in TRANSFORMS)) for name, wrapper in WRAPPERS.items()]
    assert_shown("optimizers.md", table(("around it", *(row.name for row in TRANSFORMS)), rows))


def test_the_optimizers_inside_of_proximal():
    rows = [(f"`optax.{name}`", "right") for name in sorted(RIGHT)]
    rows += [(name, "right" if is_right else "refused") for name, (_, is_right) in SETTINGS.items()]
    assert_shown("optimizers.md", table(("inside of `proximal`", "loss + penalty is"), rows))
