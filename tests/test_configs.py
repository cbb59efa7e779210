"""Configs as people write them: YAML, ml_collections and OmegaConf, and the shapes of a checkpoint to check them by."""

import json
from collections import ChainMap, UserList

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from cases import Cube, half_sum_of_squares
from ml_collections.config_dict import FieldReference, FrozenConfigDict

import jaxreg
from jaxreg import L1, L1L2, L2, OrthogonalRegularizer, Rules, constraints

TEXT = """
rules:
  - pattern: head/
    regularizer: null
  - pattern: query/kernel$
    orthogonal: {factor: 1e-2, mode: columns, out_axis: [1, 2]}
  - {pattern: embedding$, regularizer: group_lasso}
  - {pattern: "kernel$", l1: 1e-5, non_neg: true}
strict: false
"""
WRITTEN = Rules(
    (r"head/", None),
    (r"query/kernel$", OrthogonalRegularizer(1e-2, mode="columns", out_axis=(1, 2))),
    (r"embedding$", jaxreg.GroupLasso(0.01)),
    (r"kernel$", L1(1e-5) + constraints.NonNeg()),
    strict=False,
)


def test_yaml():
    config = yaml.safe_load(TEXT)
    assert config["rules"][1]["orthogonal"]["factor"] == "1e-2"  # YAML 1.1 wants a dot, as in 1.0e-2
    assert Rules.from_config(config) == WRITTEN
    assert Rules.from_config(json.loads(json.dumps(config))) == WRITTEN


def test_the_long_form_is_what_comes_back():
    config = WRITTEN.get_config()
    assert config.keys() == {"pairs", "strict"}
    assert Rules.from_config(json.loads(json.dumps(config))) == WRITTEN
    assert Rules.from_config(yaml.safe_load(yaml.safe_dump(config))) == WRITTEN


def test_a_list_of_rules_is_a_config():
    config = yaml.safe_load(TEXT)["rules"]
    assert Rules.from_config(config) == Rules.from_config({"rules": config})
    assert Rules.from_config(tuple(config)) == Rules.from_config({"rules": config, "strict": True})
    assert Rules.from_config(config).strict


# A name with its value, and what it makes.
VALUES = [
    ("l2", 1e-4, L2(1e-4)),
    ("L2", 1e-4, L2(1e-4)),
    ("l2", 1, L2(1.0)),
    ("l2", np.float32(0.5), L2(0.5)),
    ("l2", "1e-4", L2(1e-4)),
    ("l2", "0.25", L2(0.25)),
    ("l2", True, L2(0.01)),
    ("l2", {}, L2(0.01)),
    ("l2", {"l2": "1e-4"}, L2(1e-4)),
    ("l1_l2", True, L1L2(0.01, 0.01)),
    ("l1_l2", {}, L1L2(0.01, 0.01)),
    ("l1l2", {"l1": 1e-5}, L1L2(1e-5, 0.0)),
    ("L1L2", {"l1": None, "l2": "2e-5"}, L1L2(0.0, 2e-5)),
    ("huber", {"factor": 0.1, "delta": "1e-2"}, jaxreg.Huber(0.1, delta=1e-2)),
    ("group_lasso", {"factor": 0.1, "group_axis": [0, 1]}, jaxreg.GroupLasso(0.1, group_axis=(0, 1))),
    ("orthogonal", {"sample": 64}, OrthogonalRegularizer(0.01, sample=64)),
    ("max_norm", 3, constraints.MaxNorm(3.0)),
    ("non_neg", True, constraints.NonNeg()),
    ("max_rank", 4, constraints.MaxRank(4)),
    ("nm", {"n": 2, "m": 4}, constraints.NM(2, 4)),
    ("box", {"lower": "-1e0", "upper": None}, constraints.Box(-1.0, None)),
    ("keep_norm", {"group_axis": 0}, constraints.KeepNorm(group_axis=0)),
    ("regularizer", "l2", L2(0.01)),
    ("regularizer", "max_norm", constraints.MaxNorm(2.0)),
    ("regularizer", {"class_name": "L2", "config": {"l2": 0.5}}, L2(0.5)),
    ("regularizer", {"class_name": "l2", "config": {"l2": "1e-4"}}, L2(1e-4)),
    ("regularizer", {"class_name": "L2"}, L2()),
    ("regularizer", jaxreg.serialize(2.0 * (L1(0.1) + L2(0.2))), 2.0 * (L1(0.1) + L2(0.2))),
    ("regularizer", None, None),
]


@pytest.mark.parametrize(("name", "value", "expected"), VALUES)
def test_a_name_and_its_value(name, value, expected):
    assert Rules.from_config([{"pattern": "kernel$", name: value}]) == Rules((r"kernel$", expected))


def test_every_name_that_get_knows_is_a_name_of_a_rule():
    with pytest.raises(ValueError, match="the names are") as error:
        jaxreg.get("no such name")
    names = str(error.value).split("the names are ")[1].split(", ")
    assert len(names) > 60
    for name in names:
        try:
            expected = Rules((r"kernel$", name))
        except TypeError:  # it has no defaults
            with pytest.raises(ValueError, match=rf"`rules\[0\].{name}` must be a dict with '\w+'"):
                Rules.from_config([{"pattern": "kernel$", name: True}])
        else:
            assert Rules.from_config([{"pattern": "kernel$", name: True}]) == expected


def test_several_names_add_up_in_their_order():
    made = Rules.from_config([{"l2": 0.2, "pattern": "k", "non_neg": True, "L1": 0.1}])
    assert made == Rules((r"k", L2(0.2) + constraints.NonNeg() + L1(0.1)))
    x = jnp.array([1.0, -2.0])
    objects = {"half_sum_of_squares": half_sum_of_squares}
    sums = Rules.from_config([{"pattern": "k", "l1": 0.1, "l2": 0.2, "half_sum_of_squares": True}], objects)
    np.testing.assert_allclose(sums({"k": x}), 0.1 * 3 + 0.2 * 5 + 0.5 * 5, rtol=1e-6)


class Powers(jaxreg.Regularizer):
    """A class with an `__init__` of its own, as Keras's page has it."""

    def __init__(self, factor=0.5, power=3, **others):
        self.factor = factor
        self.power = power
        self.others = tuple(others.items())

    def __call__(self, x):
        return self.factor * jnp.sum(jnp.abs(x) ** self.power)


class Cubes(jaxreg.Regularizer):
    """A class whose arguments promise nothing."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        return self.strength * jnp.sum(jnp.abs(x) ** 3)


class Half(jaxreg.Regularizer):
    inner: jaxreg.Regularizer

    def __call__(self, x):
        return 0.5 * self.inner(x)


CUSTOM = {
    "Half": Half,
    "l0": Cube,
    "Cube": Cube,
    "half_sum_of_squares": half_sum_of_squares,
    "Powers": Powers,
    "Cubes": Cubes,
    "mild": "l2",
    "l1": L1(7.0),
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Cube", "1e-4", Cube(1e-4)),
        ("Cube", True, Cube()),
        ("Cubes", "1e-2", Cubes(0.01)),
        ("Cube", {"factor": 2}, Cube(2.0)),
        ("Powers", {"factor": "1e-1", "power": 4, "more": "1e-1"}, Powers(0.1, 4, more="1e-1")),
        ("half_sum_of_squares", True, half_sum_of_squares),
        ("mild", True, L2(0.01)),
        ("l1", True, L1(7.0)),  # one's own name comes before a built-in one
        ("l0", 0.5, Cube(0.5)),
        ("Powers", {"some": [1, [2, 3]]}, Powers(some=(1, (2, 3)))),
        ("Half", {"inner": {"class_name": "Cube", "config": {"factor": 0.1}}}, Half(Cube(0.1))),
        ("regularizer", "Cube", Cube()),
        ("regularizer", {"class_name": "Cube", "config": {"factor": "1e-4"}}, Cube(1e-4)),
    ],
)
def test_custom_objects(name, value, expected):
    assert Rules.from_config([{"pattern": "k", name: value}], CUSTOM) == Rules((r"k", expected))


# Other kinds of dicts and lists.


def rule(**given):
    return {"pattern": "kernel$", **given}


RATE = FieldReference(1e-4)
KINDS = {
    "a ConfigDict": lambda: ml_collections.ConfigDict({"rules": [rule(l2=1e-4)], "strict": False}),
    "a tuple in it": lambda: ml_collections.ConfigDict({"rules": (rule(l2=1e-4),), "strict": False}),
    "a reference": lambda: ml_collections.ConfigDict({"rules": [rule(l2=RATE)], "strict": False}),
    "a reference in arguments": lambda: ml_collections.ConfigDict({"rules": [rule(l2={"l2": RATE})], "strict": False}),
    "a list of them": lambda: {"rules": [ml_collections.ConfigDict(rule(l2=RATE))], "strict": False},
    "frozen ones": lambda: {"rules": (FrozenConfigDict(rule(l2=1e-4)),), "strict": False},
    "a long form in it": lambda: ml_collections.ConfigDict(Rules((r"kernel$", L2(1e-4)), strict=False).get_config()),
    "other mappings": lambda: ChainMap({"rules": UserList([ChainMap(rule(l2="1e-4"))]), "strict": False}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_configs(kind):
    assert Rules.from_config(KINDS[kind]()) == Rules((r"kernel$", L2(1e-4)), strict=False)


def test_a_frozen_config_takes_pairs_of_names():
    frozen = FrozenConfigDict({"pairs": [["head/", None], ["kernel$", "l2"]]})
    assert Rules.from_config(frozen) == Rules((r"head/", None), (r"kernel$", "l2"))


def test_reading_leaves_the_config_as_it_was():
    config = yaml.safe_load(TEXT)
    Rules.from_config(config)
    assert config == yaml.safe_load(TEXT)


# Errors. Each names the place.

RULE_ERRORS = [
    ({"l2": -1.0}, ValueError, r"`rules\[1\].l2`: `l2` must be finite and >= 0, got -1.0"),
    ({"l2": "nan"}, ValueError, r"`rules\[1\].l2`: `l2` must be finite and >= 0, got nan"),
    ({"l2": False}, TypeError, r"`rules\[1\].l2` must be a number, which is its `l2`, or .* true, got bool False"),
    ({"l2": {"l2": True}}, TypeError, r"`rules\[1\].l2`: `l2` must be a number, got bool True"),
    ({"l2": "much"}, TypeError, r"`rules\[1\].l2` must be a number, .* got str 'much'"),
    ({"l2": {"l2": "much"}}, TypeError, r"`rules\[1\].l2`: `l2` must be a number, got str 'much'"),
    ({"l2": None}, TypeError, r"`rules\[1\].l2` must not be null; write true for the defaults of 'l2'"),
    ({"l2": 1.0, "L2": 2.0}, ValueError, r"`rules\[1\]` must name each regularizer once, got \['l2', 'L2'\]"),
    ({"l2": [1e-4]}, TypeError, r"`rules\[1\].l2` must be a number, .* got list"),
    ({"l2": L2(1.0)}, TypeError, r"`rules\[1\].l2` must be a number, .* got L2"),
    ({"l2": {"factor": 1.0}}, ValueError, r"`rules\[1\].l2` has the unknown argument 'factor'; the nearest is 'l2'"),
    ({"orthogonal": {"factr": 1}}, ValueError, r"`rules\[1\].orthogonal` has the .* 'factr'; the nearest are 'factor'"),
    ({"orthogonal": {"mode": "cols"}}, ValueError, r"`rules\[1\].orthogonal`: `mode` must be 'rows' or 'columns', got"),
    ({"orthogonal": "columns"}, TypeError, r"`rules\[1\].orthogonal` must be a number, which is its `factor`"),
    (
        {"orthogonal": {"sample": "64"}},
        TypeError,
        r"`rules\[1\].orthogonal`: `sample` must be an int or None, got str '64'",
    ),
    ({"group_lasso": {"group_axis": "1"}}, TypeError, r"`group_axis` must be an int or a tuple of ints, got str '1'"),
    ({"max_norm": {"axis": 0}}, TypeError, r"`rules\[1\].max_norm`: MaxNorm takes no `axis`, as Keras calls"),
    ({"max_rank": 0.5}, TypeError, r"`rules\[1\].max_rank`: `k` must be an int, got float 0.5"),
    ({"non_neg": 2.0}, TypeError, r"`rules\[1\].non_neg` must be true, got float 2.0"),
    ({"keep_norm": 1}, TypeError, r"`rules\[1\].keep_norm` must be a dict of arguments, or true, got int 1"),
    ({"box": -1.0}, ValueError, r"`rules\[1\].box` must be a dict with 'upper', got {'lower': -1.0}"),
    ({"box": True}, ValueError, r"`rules\[1\].box` must be a dict with 'lower' and 'upper', got neither"),
    ({"l3": 1.0}, ValueError, r"`rules\[1\]` has the unknown name 'l3'; the nearest are 'l2', 'l1'"),
    ({"Sum": {"terms": []}}, ValueError, r"`rules\[1\]` has the unknown name 'Sum'"),
    ({1: 2.0}, ValueError, r"`rules\[1\]` has the unknown name 1"),
    ({}, ValueError, r"`rules\[1\]` must have a regularizer or a constraint, .*'regularizer': null"),
    ({"regularizer": None, "l2": 1.0}, ValueError, r"`rules\[1\]` must have either 'regularizer' or names such as"),
    ({"regularizer": 0.1}, TypeError, r"`rules\[1\].regularizer` must be null, a name, or a dict .* got float 0.1"),
    ({"regularizer": L2()}, TypeError, r"`rules\[1\].regularizer` must be null, a name, or a dict .* got L2"),
    ({"regularizer": True}, TypeError, r"`rules\[1\].regularizer` must be null, a name, or a dict .* got bool True"),
    ({"regularizer": {"l2": 1.0}}, TypeError, r"a dict with a 'class_name', got {'l2': 1.0}; .* beside the pattern"),
    ({"regularizer": "l3"}, ValueError, r"`rules\[1\].regularizer`: unknown regularizer 'l3'; the names are"),
    ({"regularizer": {"class_name": "L9"}}, ValueError, r"`rules\[1\].regularizer`: unknown regularizer 'L9'"),
    ({"half_sum_of_squares": 2.0}, TypeError, r"`rules\[1\].half_sum_of_squares` must be true, because .* got float 2"),
    ({"nothing": 2.0}, TypeError, r"`rules\[1\].nothing` must be true"),
    ({"nothing": True}, TypeError, r"`custom_objects\['nothing'\]` must be a regularizer or a constraint, got None"),
    ({"pattern": 3, "l2": 1.0}, TypeError, r"`rules\[1\].pattern` must be a string, got int 3"),
    ({"pattern": None, "l2": 1.0}, TypeError, r"`rules\[1\].pattern` must be a string, got None"),
    ({"pattern": "kernel(", "l2": 1.0}, ValueError, r"`rules\[1\].pattern`: the pattern .* not a regular expression"),
    ({"pattern": "c*", "l2": 1.0}, ValueError, r"`rules\[1\].pattern`: the pattern 'c\*' matches the empty string"),
]


@pytest.mark.parametrize(("given", "error", "message"), RULE_ERRORS)
def test_errors_of_a_rule(given, error, message):
    objects = {"half_sum_of_squares": half_sum_of_squares, "nothing": None}
    with pytest.raises(error, match=message):
        Rules.from_config([rule(l2=1.0), {"pattern": "kernel$"} | given], objects)


ERRORS = [
    ([], ValueError, "`rules` in a config must hold at least one rule, got an empty list"),
    ({"rules": {"a": rule(l2=1.0)}}, TypeError, "`rules` in a config must be a list, because their order counts"),
    ({"rules": None}, TypeError, "`rules` in a config must be a list, .* got None"),
    (["kernel$"], TypeError, r"`rules\[0\]` must be a dict, such as {'pattern': 'kernel\$', .* got str 'kernel\$'"),
    ([["kernel$", "l2"]], TypeError, r"`rules\[0\]` must be a dict, such as .* got list"),
    ([{"l2": 1.0}], ValueError, r"`rules\[0\]` must have a 'pattern', .* got {'l2': 1.0}"),
    (
        [{"patern": "k", "l2": 1.0}],
        ValueError,
        r"`rules\[0\]` has the unknown name 'patern'; .* 'pattern'",
    ),
    (rule(l2=1.0), ValueError, r"`config` must be .* got \['l2', 'pattern'\]; in the short form it is a list"),
    ({"rules": [rule(l2=1.0)], "pairs": []}, ValueError, r"`config` must be .* got \['pairs', 'rules'\]"),
    ({"rules": [rule(l2=1.0)], "strict": "no"}, TypeError, "`strict` must be a bool, got str 'no'"),
    ("kernel$", ValueError, r"`config` must be .* got str 'kernel\$'"),
]


@pytest.mark.parametrize(("config", "error", "message"), ERRORS)
def test_errors_of_a_config(config, error, message):
    with pytest.raises(error, match=message):
        Rules.from_config(config)


def test_custom_objects_must_be_a_dict():
    with pytest.raises(TypeError, match="`custom_objects` must be a dict from names to objects, got list"):
        Rules.from_config([rule(l2=1.0)], [Cube])


def test_a_config_that_holds_itself_is_an_error():
    config = [rule(l2=1.0)]
    config.append(config)
    with pytest.raises(ValueError, match="`config` is nested too deeply"):
        Rules.from_config(config)


def test_a_pattern_that_meets_nothing_is_found_against_the_parameters():
    rules = Rules.from_config([{"pattern": "kernal$", "l2": 1e-4}])
    with pytest.raises(ValueError, match=r"rule 0 .* met no parameter; the nearest paths are `hidden/kernel`"):
        rules({"hidden": {"kernel": jnp.ones((2, 2))}})


def test_rules_are_checked_against_the_shapes_in_a_checkpoint(tmp_path):
    """These are the lines in the docstring of `Rules.from_config`."""
    path = tmp_path / "saved"
    params = {"hidden": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}, "head": {"kernel": jnp.ones((3, 2))}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": params, "step": jnp.int32(7)})
    rules = Rules.from_config([{"pattern": "head/", "regularizer": None}, {"pattern": "kernel$", "l2": 1e-4}])

    lines = Rules.from_config.__doc__.splitlines()
    first = next(number for number, line in enumerate(lines) if "StandardCheckpointer" in line)
    code = "\n".join(line.strip() for line in lines[first : first + 2])
    shown = []
    exec(code, {"ocp": ocp, "jax": jax, "rules": rules, "path": path, "print": shown.append})
    assert str(shown[0]) == str(rules.explain(jax.eval_shape(lambda: params)))
    assert "float32[4,3]" in str(shown[0])
    wrong = Rules.from_config([{"pattern": "kernal$", "l2": 1e-4}])
    with pytest.raises(ValueError, match="met no parameter"):
        exec(code, {"ocp": ocp, "jax": jax, "rules": wrong, "path": path})
