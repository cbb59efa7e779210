"""Every way to put rules into an optimizer, inside every wrapper of optax, tree and training state that people use.

The laws run over the rows of `TRANSFORMS`, and compare with their steps in NumPy.
"""

import functools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from transform_cases import (
    GRADIENTS,
    METRIC,
    PARAMS,
    RATE,
    RULES,
    STRENGTHS,
    TRANSFORMS,
    Reference,
    flat,
    nested,
    numbers,
    rules,
)

import jaxreg
from jaxreg import L1, L1L2, L2, GroupLasso, Rules, add_penalty_gradients, proximal

pytestmark = pytest.mark.standard_promotion

every_transform = pytest.mark.parametrize("row", TRANSFORMS, ids=str)


def rows(**flags):
    """Parametrizes a test over the rows that have the flags."""
    found = [row for row in TRANSFORMS if all(getattr(row, flag) == value for flag, value in flags.items())]
    return pytest.mark.parametrize("row", found, ids=str)


def stepper(tx, apply=optax.apply_updates):
    """Returns one compiled step of training."""

    @eqx.filter_jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return apply(params, updates), state

    return step


def penalty(state):
    """Returns the penalty that the transforms in a state have tracked."""
    return sum(np.asarray(value, np.float64) for _, value in optax.tree.get_all_with_path(state, "penalty"))


def assert_close(got, expected, *, rtol=1e-5, atol=1e-6):
    assert set(got) == set(expected)
    for path, value in got.items():
        np.testing.assert_allclose(value, expected[path], rtol=rtol, atol=atol, err_msg=path)


def assert_same_zeros(row, got, expected):
    """Weights are exactly zero where the reference has zeros. A row without the flag has none."""
    zeros = {path: value == 0 for path, value in got.items()}
    for path, value in zeros.items():
        np.testing.assert_array_equal(value, expected[path] == 0, err_msg=path)
    assert any(np.any(value) for value in zeros.values()) == row.zeros


def assert_some_zeros(row, got, expected):
    """A wrapper that adds differences rounds some of the zeros away."""
    zeros = {path: value == 0 for path, value in got.items()}
    assert not any(np.any(zeros[path] & (expected[path] != 0)) for path in zeros)
    assert any(np.any(value) for value in zeros.values()) == row.zeros


# Wrappers of optax.


def schedule(count):
    return RATE / (1 + count)


class Wrapper(NamedTuple):
    """A wrapper, with what becomes of the parameters under it.

    Attributes:
      around: the wrapped optimizer of a row.
      expected: yields the parameters after each of the gradients, from the reference of the row.
      gradients: what the optimizer is given.
      start: the parameters that the wrapper takes.
      seen: the parameters of interest among those.
      zeros: what is asserted of exact zeros after the last gradient.
    """

    around: Callable[..., Any]
    expected: Callable[..., Any]
    gradients: Any = GRADIENTS
    start: Callable[[Any], Any] = lambda params: params
    seen: Callable[[Any], Any] = lambda params: params
    zeros: Callable[..., None] = assert_same_zeros


def make(row, rate=RATE):
    return row.make(rate, RULES)


def each(reference, params, gradients):
    for gradient in gradients:
        params = reference.step(params, gradient)
        yield params


def each_at_its_rate(reference, params, gradients):
    for count, gradient in enumerate(gradients):
        params = reference.step(params, gradient, schedule(count))
        yield params


def each_clipped(reference, params, gradients):
    for gradient in gradients:
        norm = np.sqrt(sum(np.square(value).sum() for value in gradient.values()))
        params = reference.step(params, {path: value / max(norm, 1.0) for path, value in gradient.items()})
        yield params


def each_mean_of_two(reference, params, gradients):
    for first, second in zip(gradients[::2], gradients[1::2], strict=True):
        yield params
        params = reference.step(params, {path: (first[path] + second[path]) / 2 for path in first})
        yield params


def each_finite(reference, params, gradients):
    for gradient in gradients:
        if all(np.all(np.isfinite(value)) for value in gradient.values()):
            params = reference.step(params, gradient)
        yield params


def hidden_alone(rate_of_rest):
    """The wrapped transform has the hidden layer, and the rest takes plain steps."""

    def expected(reference, params, gradients):
        for gradient in gradients:
            hidden = {path: value for path, value in params.items() if path.startswith("hidden")}
            rest = {path: value - rate_of_rest * gradient[path] for path, value in params.items()}
            params = rest | reference.step(hidden, gradient)
            yield params

    return expected


def each_after_two(added):
    """The first two gradients do not reach the transform: they are added `added` times."""

    def expected(reference, params, gradients):
        for count, gradient in enumerate(gradients):
            if count < 2:
                params = {path: value + added * gradient[path] for path, value in params.items()}
            else:
                params = reference.step(params, gradient)
            yield params

    return expected


def each_with_slow_weights(reference, fast, gradients):
    slow = fast
    for count, gradient in enumerate(gradients, start=1):
        fast = reference.step(fast, gradient)
        if count % 3 == 0:
            fast = slow = {path: slow[path] + 0.5 * (fast[path] - slow[path]) for path in fast}
        yield fast


def each_second_from_above(reference, params, gradients):
    """The first gradient climbs, and the second one is used where the climb began."""
    for first, second in zip(gradients[::2], gradients[1::2], strict=True):
        yield {path: value + 0.05 * first[path] for path, value in params.items()}
        params = reference.step(params, second)
        yield params


def inject(row):
    def named(learning_rate, rules):
        return row.make(learning_rate, rules)

    return optax.inject_hyperparams(named, static_args=("rules",))(learning_rate=schedule, rules=RULES)


def inject_numbers(row):
    return optax.inject_hyperparams(lambda learning_rate: row.make(learning_rate, RULES))(learning_rate=RATE)


NOT_A_NUMBER = {path: value * np.nan for path, value in GRADIENTS[0].items()}
INFINITE = {**GRADIENTS[0], "hidden/kernel": GRADIENTS[0]["hidden/kernel"] * np.inf}
EACH_LEAF = {"hidden": {"kernel": True, "bias": True}, "head": {"kernel": False}}
LABELS = {"hidden": {"kernel": "ours", "bias": "ours"}, "head": {"kernel": "other"}}

WRAPPERS = {
    "none": Wrapper(make, each),
    "a schedule": Wrapper(lambda row: make(row, schedule), each_at_its_rate),
    "chain": Wrapper(lambda row: optax.chain(optax.clip_by_global_norm(1.0), make(row)), each_clipped),
    "inject_hyperparams": Wrapper(inject, each_at_its_rate),
    "MultiSteps": Wrapper(lambda row: optax.MultiSteps(make(row), 2), each_mean_of_two),
    "MultiSteps in a chain": Wrapper(
        lambda row: optax.chain(optax.MultiSteps(make(row), 2).gradient_transformation(), optax.identity()),
        each_mean_of_two,
    ),
    "apply_if_finite": Wrapper(
        lambda row: optax.apply_if_finite(make(row), 3),
        each_finite,
        gradients=[NOT_A_NUMBER, GRADIENTS[0], INFINITE, GRADIENTS[1]],
    ),
    "masked": Wrapper(lambda row: optax.masked(make(row), EACH_LEAF), hidden_alone(-1.0)),
    "masked, a prefix": Wrapper(
        lambda row: optax.masked(make(row), {"hidden": True, "head": False}), hidden_alone(-1.0)
    ),
    "partition": Wrapper(
        lambda row: optax.partition({"ours": make(row), "other": optax.sgd(0.5)}, LABELS), hidden_alone(0.5)
    ),
    "partition, a prefix": Wrapper(
        lambda row: optax.partition(
            {"ours": make(row), "other": optax.set_to_zero()}, {"hidden": "ours", "head": "other"}
        ),
        hidden_alone(0.0),
    ),
    "conditionally_transform": Wrapper(
        lambda row: optax.conditionally_transform(make(row), lambda step: step >= 2), each_after_two(1.0)
    ),
    "conditionally_mask": Wrapper(
        lambda row: optax.conditionally_mask(make(row), lambda step: step >= 2), each_after_two(0.0)
    ),
    "lookahead": Wrapper(
        lambda row: optax.lookahead(make(row), 3, 0.5),
        each_with_slow_weights,
        start=optax.LookaheadParams.init_synced,
        seen=lambda params: params.fast,
    ),
    "sam": Wrapper(
        lambda row: optax.contrib.sam(make(row), optax.sgd(0.05), sync_period=2),
        each_second_from_above,
        zeros=assert_some_zeros,
    ),
}


@every_transform
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers(wrapper, row):
    """Each step is the reference's, and the state has the penalty at the parameters that the transform met last."""
    tx, reference = wrapper.around(row), Reference(row)
    params = wrapper.start(nested(PARAMS))
    state, step = tx.init(params), stepper(tx)
    for gradient, expected in zip(
        wrapper.gradients, wrapper.expected(reference, PARAMS, wrapper.gradients), strict=True
    ):
        params, state = step(params, state, nested(gradient))
        got = flat(wrapper.seen(params))
        assert_close(got, expected)
        np.testing.assert_allclose(penalty(state), reference.penalty, rtol=1e-5)
    wrapper.zeros(row, got, expected)


@every_transform
def test_eager_is_jitted(row):
    tx = make(row)
    params, updates, state = nested(PARAMS), None, tx.init(nested(PARAMS))
    for gradient in GRADIENTS[:2]:
        expected, expected_state = jax.jit(tx.update)(nested(gradient), state, params)
        updates, state = tx.update(nested(gradient), state, params)
        chex.assert_trees_all_close((updates, state), (expected, expected_state), rtol=1e-5, atol=1e-6)
        params = optax.apply_updates(params, updates)


@every_transform
def test_rules_apart_are_rules_together(row):
    """Each set of rules has its own penalty in the state, which must be asked for with its path."""
    kernels, biases = (
        Rules((r"hidden/kernel$", L1L2(*STRENGTHS["kernel"]))),
        Rules((r"bias$", L1(STRENGTHS["bias"][0]))),
    )
    tx, reference = row.make(RATE, kernels, biases), Reference(row)
    params, expected = nested(PARAMS), PARAMS
    state, step = tx.init(params), stepper(tx)
    for gradient in GRADIENTS[:2]:
        met = params
        params, state = step(params, state, nested(gradient))
        expected = reference.step(expected, gradient)
        assert_close(flat(params), expected)
        found = [value for _, value in optax.tree.get_all_with_path(state, "penalty")]
        np.testing.assert_allclose(sorted(found), sorted([kernels(met), biases(met)]), rtol=1e-5)
        with pytest.raises(KeyError):
            optax.tree.get(state, "penalty")


@every_transform
def test_what_no_rule_penalizes_moves_as_without_rules(row):
    """The updates are equal to the bit, and so are the signs of zeros."""
    gradients = nested(GRADIENTS[0])
    gradients["head"]["kernel"] = jnp.full((3, 2), -0.0).at[0].set(gradients["head"]["kernel"][0])
    params = nested(PARAMS)
    updates, expected = (
        jax.jit(tx.update)(gradients, tx.init(params), params)[0]["head"]["kernel"]
        for tx in (make(row), row.make(RATE))
    )
    np.testing.assert_array_equal(updates, expected)
    np.testing.assert_array_equal(np.signbit(updates), np.signbit(expected))


@every_transform
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_apply_if_finite_refuses_a_step(dtype, row):
    """A step that is refused changes neither parameters nor the state inside; one that is not is the plain step."""
    alone, params, gradients = make(row), nested(PARAMS, dtype), nested(GRADIENTS[0], dtype)
    tx = optax.apply_if_finite(alone, max_consecutive_errors=3)
    update, before = jax.jit(tx.update), tx.init(params)
    refused, state = update(nested(NOT_A_NUMBER, dtype), before, params)
    chex.assert_trees_all_equal(refused, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(state.inner_state, before.inner_state)
    updates, state = update(gradients, state, params)
    expected, expected_state = jax.jit(alone.update)(gradients, before.inner_state, params)
    chex.assert_trees_all_close((updates, state.inner_state), (expected, expected_state), rtol=1e-6)
    _, state = update(nested(NOT_A_NUMBER, dtype), state, params)
    chex.assert_trees_all_equal(state.inner_state, update(gradients, before, params)[1].inner_state)
    reference = Reference(row).step(flat(params), flat(gradients))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == jnp.bfloat16 else {}
    assert_close(flat(optax.apply_updates(params, updates)), reference, **tolerance)


NARROW = nested(GRADIENTS[0], jnp.bfloat16)


@rows(takes_narrow=True)
def test_apply_if_finite_with_gradients_narrower_than_parameters(row):
    tx = optax.apply_if_finite(make(row), 3)
    updates, _ = tx.update(NARROW, tx.init(nested(PARAMS)), nested(PARAMS))
    assert_close(
        flat(optax.apply_updates(nested(PARAMS), updates)),
        Reference(row).step(PARAMS, flat(NARROW)),
        rtol=2e-2,
        atol=2e-2,
    )


@rows(takes_narrow=False)
def test_apply_if_finite_wants_narrow_gradients_cast(row):
    """The updates have the dtype of the parameters, and optax compares it with that of the gradients."""
    tx, params = optax.apply_if_finite(make(row), 3), nested(PARAMS)
    with pytest.raises(TypeError, match=r"cond|branch"):
        tx.update(NARROW, tx.init(params), params)
    updates, _ = tx.update(optax.tree.cast_like(NARROW, params), tx.init(params), params)
    assert_close(flat(optax.apply_updates(params, updates)), Reference(row).step(PARAMS, flat(NARROW)))


@every_transform
def test_an_injected_rate_may_be_changed(row):
    tx, reference = inject_numbers(row), Reference(row)
    params, expected = nested(PARAMS), PARAMS
    state, step = tx.init(params), stepper(tx)
    for gradient, rate in zip(GRADIENTS, (0.1, 0.02, 0.0, 0.3), strict=True):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        params, state = step(params, state, nested(gradient))
        expected = reference.step(expected, gradient, rate)
        assert_close(flat(params), expected)


def test_injected_options_of_the_gradients():
    """`scale` may be injected, as a schedule or as a number that is changed."""
    make = optax.inject_hyperparams(add_penalty_gradients, static_args=("rules",))
    row = TRANSFORMS[0]
    expected = Reference(row).step(PARAMS, GRADIENTS[0])
    without = {path: value + GRADIENTS[0][path] for path, value in PARAMS.items()}
    params = nested(PARAMS)
    scheduled = make(rules=RULES, scale=optax.linear_schedule(0.0, 1.0, 1))
    state = scheduled.init(params)
    for wanted in (without, expected):
        updates, state = jax.jit(scheduled.update)(nested(GRADIENTS[0]), state, params)
        assert_close(flat(optax.apply_updates(params, updates)), wanted)
    assert state.hyperparams["scale"] == 1.0
    constant = make(rules=RULES, scale=2.0)
    state = constant.init(params)
    state.hyperparams["scale"] = jnp.asarray(1.0)
    updates, _ = jax.jit(constant.update)(nested(GRADIENTS[0]), state, params)
    assert_close(flat(optax.apply_updates(params, updates)), expected)


def test_injected_options_of_the_prox():
    """The rate and `b2` may be injected into both, or into the prox alone. (Into the optimizer alone is refused.)"""
    row = TRANSFORMS[-1]
    options = {name: value for name, value in METRIC.items() if name not in ("b2", "metric")}

    def adam(learning_rate, b2):
        return optax.adam(learning_rate, b1=0.8, b2=b2, eps=METRIC["eps"], eps_root=METRIC["eps_root"])

    def both(learning_rate, b2):
        return proximal(adam(learning_rate, b2), RULES, learning_rate, metric="adam", b2=b2, **options)

    outside = optax.inject_hyperparams(proximal, static_args=("rules",))
    numbers = {"learning_rate": RATE, "b2": METRIC["b2"]}
    transforms = (
        optax.inject_hyperparams(both)(**numbers),
        outside(adam(**numbers), rules=RULES, learning_rate=lambda count: RATE, **METRIC),
    )
    for tx in transforms:
        reference, params, expected = Reference(row), nested(PARAMS), PARAMS
        state, step = tx.init(params), stepper(tx)
        for gradient in GRADIENTS:
            params, state = step(params, state, nested(gradient))
            expected = reference.step(expected, gradient)
        assert_close(flat(params), expected)


def test_gradients_collected_inside_a_chain():
    """`MultiSteps` around `add_penalty_gradients` alone: the other links of the chain see zeros in between."""
    row = TRANSFORMS[0]
    tx = optax.chain(optax.MultiSteps(make(row), 2).gradient_transformation(), optax.sgd(RATE))
    params, reference = nested(PARAMS), Reference(row)
    state, step = tx.init(params), stepper(tx)
    after, state = step(params, state, nested(GRADIENTS[0]))
    chex.assert_trees_all_equal(after, params)
    after, state = step(params, state, nested(GRADIENTS[1]))
    *_, collected = each_mean_of_two(reference, PARAMS, GRADIENTS[:2])
    assert_close(flat(after), {path: value - RATE * (collected[path] - value) for path, value in PARAMS.items()})


@every_transform
def test_unknown_parameters_are_an_error_under_a_mask_too(row):
    params = nested(PARAMS)
    misspelt = Rules((r"kernle$", L2()), (r"bias$", L1()))
    for mask in (EACH_LEAF, {"hidden": True, "head": False}):
        tx = optax.masked(row.make(RATE, misspelt), mask)
        with pytest.raises(ValueError, match=r"rule 0 \('kernle\$'.*met no parameter"):
            tx.update(nested(GRADIENTS[0]), tx.init(params), params)


@every_transform
def test_a_rule_may_meet_what_is_masked(row):
    """A rule counts as met by a masked parameter, and by what may lie below a masked node. It costs nothing there."""
    below = Rules((r"head/kernel$", L1(1.0)), (r"hidden/kernel$", L1L2(*STRENGTHS["kernel"])), (r"bias$", L1(1.0)))
    params, gradients = nested(PARAMS), nested(GRADIENTS[0])
    expected, reference = PARAMS, Reference(row)
    *_, expected = hidden_alone(-1.0)(reference, PARAMS, GRADIENTS[:1])
    for mask in (EACH_LEAF, {"hidden": True, "head": False}):
        tx = optax.masked(row.make(RATE, below), mask)
        updates, state = tx.update(gradients, tx.init(params), params)
        assert_close(flat(optax.apply_updates(params, updates)), expected)
        np.testing.assert_allclose(penalty(state), reference.penalty, rtol=1e-6)


# Trees.


class Layer(eqx.Module):
    kernel: Any
    bias: Any = None
    activation: Any = None


class Model(eqx.Module):
    hidden: Layer
    head: Layer


def as_model(values, activation=None):
    hidden = Layer(values["hidden/kernel"], values["hidden/bias"], activation)
    return Model(hidden, Layer(values["head/kernel"], None, activation))


def of_model(model):
    return {
        "hidden/kernel": model.hidden.kernel,
        "hidden/bias": model.hidden.bias,
        "head/kernel": model.head.kernel,
    }


def as_haiku(values):
    hidden = {"w": values["hidden/kernel"], "b": values["hidden/bias"]}
    return {"net/~/hidden": hidden, "net/~/head": {"w": values["head/kernel"]}}


def of_haiku(tree):
    hidden = tree["net/~/hidden"]
    return {"hidden/kernel": hidden["w"], "hidden/bias": hidden["b"], "head/kernel": tree["net/~/head"]["w"]}


def as_dict(values):
    hidden = {"kernel": values["hidden/kernel"], "bias": values["hidden/bias"]}
    return {"hidden": hidden, "head": {"kernel": values["head/kernel"]}}


def of_dict(tree):
    return {
        "hidden/kernel": tree["hidden"]["kernel"],
        "hidden/bias": tree["hidden"]["bias"],
        "head/kernel": tree["head"]["kernel"],
    }


class Tree(NamedTuple):
    """How the parameters, the gradients and the parameters for `init` are packed, and how parameters are unpacked."""

    params: Callable[[Any], Any]
    gradients: Callable[[Any], Any]
    unpack: Callable[[Any], Any]
    for_init: Callable[[Any], Any] = lambda params: params
    apply: Callable[[Any, Any], Any] = optax.apply_updates


def tree(pack, unpack):
    return Tree(pack, pack, unpack)


def boxed(values):
    return jax.tree.map(lambda x: nn.Partitioned(x, names=("m",) * x.ndim), as_dict(values))


def variables(values):
    return nnx.State(jax.tree.map(nnx.Param, as_dict(values)))


TREES = {
    "FrozenDict": tree(lambda values: freeze(as_dict(values)), of_dict),
    "Haiku": tree(as_haiku, of_haiku),
    "boxes": tree(boxed, lambda params: of_dict(nn.meta.unbox(params))),
    "nnx.State": tree(variables, lambda state: of_dict(nnx.to_pure_dict(state))),
    "Equinox, arrays alone": tree(as_model, of_model),
    "Equinox, the whole model": Tree(
        lambda values: as_model(values, jnp.tanh),
        as_model,
        of_model,
        for_init=lambda model: eqx.filter(model, eqx.is_inexact_array),
        apply=eqx.apply_updates,
    ),
}


@every_transform
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_trees(tree, row):
    """The rules meet the parameters of any tree, and the updates have its structure."""
    tx, reference = make(row), Reference(row)
    params, expected = tree.params({path: jnp.asarray(x, jnp.float32) for path, x in PARAMS.items()}), PARAMS
    state, step = tx.init(tree.for_init(params)), stepper(tx, tree.apply)
    for gradient in GRADIENTS[:2]:
        before = params
        packed = tree.gradients({path: jnp.asarray(x, jnp.float32) for path, x in gradient.items()})
        params, state = step(params, state, packed)
        expected = reference.step(expected, gradient)
        chex.assert_trees_all_equal_structs(params, before)
        assert_close({path: np.asarray(x) for path, x in tree.unpack(params).items()}, expected)
        np.testing.assert_allclose(penalty(state), reference.penalty, rtol=1e-5)


HOLES = {
    "None": (jnp.ones(2), None, 4.4),
    "a masked update": (jnp.ones(2), optax.MaskedNode(), 4.4),
    "masked": (optax.MaskedNode(), optax.MaskedNode(), 0.0),
    "float0": (jnp.arange(3), np.zeros(3, jax.dtypes.float0), 0.0),
    "an int": (jnp.asarray(3), None, 0.0),
    "a function": (jnp.tanh, None, 0.0),
}


@every_transform
@pytest.mark.parametrize(("param", "update", "cost"), HOLES.values(), ids=HOLES)
def test_holes_pass_through(param, update, cost, row):
    """A leaf that does not move comes back as it is. Its rule counts as met, and costs what the parameter costs."""
    others = {"hidden": True, "head": True, "frozen": {"kernel": False}}
    tx = row.make(RATE, RULES, around=lambda optimizer: optax.masked(optimizer, others), **dict(row.unchecked))
    params = nested(PARAMS) | {"frozen": {"kernel": param}}
    reference = Reference(row)
    expected, state = PARAMS, tx.init(params)
    for gradient in GRADIENTS[:2]:
        updates, state = tx.update(nested(gradient) | {"frozen": {"kernel": update}}, state, params)
        assert updates.pop("frozen")["kernel"] is update
        expected = reference.step(expected, gradient)
        moved = optax.apply_updates({name: params[name] for name in updates}, updates)
        params = moved | {"frozen": params["frozen"]}
        assert_close(flat(moved), expected)
        np.testing.assert_allclose(penalty(state), reference.penalty + cost, rtol=1e-5)


# Dtypes.

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
NAMED = {f"{np.dtype(p).name} {np.dtype(u).name}": (p, u) for p in DTYPES for u in DTYPES}


@every_transform
def test_every_pair_of_dtypes(row):
    """Updates have the dtype that they have without rules, or the wider one of theirs and the parameter's."""
    kernels = Rules((r"head", None), (r"kernel$", L1L2(*STRENGTHS["kernel"])))
    first, second = ({path: x for path, x in numbers(seed, (32, 8)).items() if "kernel" in path} for seed in (0, 1))
    params = {name: nested(first, param) for name, (param, _) in NAMED.items()}
    gradients = {name: nested(second, update) for name, (_, update) in NAMED.items()}
    tx, without = row.make(RATE, kernels), row.make(RATE)
    updates, state = jax.jit(tx.update)(gradients, tx.init(params), params)
    plain = jax.eval_shape(without.update, gradients, without.init(params), params)[0]
    if row.widens:
        penalized = jax.tree.map(
            lambda u, p: jax.ShapeDtypeStruct(u.shape, jnp.promote_types(u.dtype, p.dtype)), plain, params
        )
        plain = {name: {"hidden": penalized[name]["hidden"], "head": plain[name]["head"]} for name in NAMED}
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, plain)
    new = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
    total = 0.0
    for name, dtypes in NAMED.items():
        reference = Reference(row)
        expected = reference.step(flat(params[name]), flat(gradients[name]))
        total += reference.penalty
        narrow = any(jnp.finfo(dtype).bits < 32 for dtype in dtypes)
        assert_close(flat(new[name]), expected, **({"rtol": 2e-2, "atol": 4e-2} if narrow else {}))
        zeros = np.asarray(new[name]["hidden"]["kernel"]) == 0
        assert row.zeros == (np.mean(zeros) > 0.05), name  # Narrow dtypes meet zero by chance without a prox.
        assert not np.all(zeros)
    assert state_of(row, state).penalty.dtype == jnp.float32
    np.testing.assert_allclose(penalty(state), total, rtol=1e-5)


@rows(adam=False)
def test_promotion_may_be_strict(row):
    """The transforms mix no dtypes and ranks by themselves. (The Adam of optax does.)"""
    tx, params, gradients = make(row), nested(PARAMS, jnp.bfloat16), nested(GRADIENTS[0])
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    expected = Reference(row).step(flat(params), GRADIENTS[0])
    moved = {path: value + flat(params)[path] for path, value in flat(updates).items()}
    assert_close(moved, expected, rtol=1e-2, atol=1e-2)


@every_transform
def test_float64(row):
    with jax.enable_x64(True):
        tx, reference = make(row), Reference(row)
        params, expected = nested(PARAMS, jnp.float64), PARAMS
        state, step = tx.init(params), stepper(tx)
        for gradient in GRADIENTS:
            params, state = step(params, state, nested(gradient, jnp.float64))
            expected = reference.step(expected, gradient)
        chex.assert_type(jax.tree.leaves(params), jnp.float64)
        assert_close(flat(params), expected, rtol=1e-12, atol=1e-12)
        assert_same_zeros(row, flat(params), expected)
        chex.assert_type(state_of(row, state).penalty, jnp.float32)


# Devices.

LARGE = Rules((r"kernel$", L1L2(2.0, 0.2)), (r"units$", GroupLasso(2.0)))
LARGE_PARAMS = {name: numbers(seed, (16, 8))["hidden/kernel"] for seed, name in enumerate(("kernel", "units"))}
LARGE_GRADIENTS = {name: numbers(seed, (16, 8))["hidden/kernel"] for seed, name in enumerate(("kernel", "units"), 2)}
SHARDED = {"rows": PartitionSpec("d"), "columns": PartitionSpec(None, "d")}


def for_each_sharding(values):
    return dict.fromkeys(SHARDED, nested(values))


@functools.cache
def on_one_device(row):
    tx, params = row.make(RATE, LARGE), for_each_sharding(LARGE_PARAMS)
    return jax.jit(tx.update)(for_each_sharding(LARGE_GRADIENTS), tx.init(params), params)


@every_transform
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_sharded_parameters_keep_their_sharding(axis_type, row):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    tx, shardings = row.make(RATE, LARGE), {name: NamedSharding(mesh, spec) for name, spec in SHARDED.items()}
    with jax.set_mesh(mesh):
        params, gradients = (
            {name: jax.device_put(nested(values), sharding) for name, sharding in shardings.items()}
            for values in (LARGE_PARAMS, LARGE_GRADIENTS)
        )
        updates, state = jax.jit(tx.update)(gradients, tx.init(params), params)
    expected, expected_state = on_one_device(row)
    by_hand = Reference(row).step({"kernel": LARGE_PARAMS["kernel"]}, LARGE_GRADIENTS)["kernel"]
    for name, sharding in shardings.items():
        for update in jax.tree.leaves(updates[name]):
            assert update.sharding.is_equivalent_to(sharding, 2)
        moved = np.asarray(updates[name]["kernel"], np.float64) + LARGE_PARAMS["kernel"]
        np.testing.assert_allclose(moved, by_hand, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(penalty(state), penalty(expected_state), rtol=1e-5)


@every_transform
@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("d")], ids=["replicated", "sharded"])
def test_shard_map(spec, row):
    """Each device has the step of its own rows, where a penalty is a sum over weights."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    tx = row.make(RATE, Rules((r"kernel$", L1L2(2.0, 0.2))))
    params, gradients = ({"kernel": jnp.asarray(x["kernel"], jnp.float32)} for x in (LARGE_PARAMS, LARGE_GRADIENTS))
    state = tx.init(params)
    state_specs = jax.tree.map(lambda leaf: spec if leaf.ndim else PartitionSpec(), state)
    update = jax.shard_map(
        lambda u, s, p: tx.update(u, s, p)[0], mesh=mesh, in_specs=(spec, state_specs, spec), out_specs=spec
    )
    updates = jax.jit(update)(gradients, state, params)
    expected = Reference(row).step({"kernel": LARGE_PARAMS["kernel"]}, LARGE_GRADIENTS)
    np.testing.assert_allclose(
        np.asarray(updates["kernel"], np.float64) + LARGE_PARAMS["kernel"], expected["kernel"], rtol=1e-5, atol=1e-6
    )


@every_transform
def test_donated_buffers(row):
    """The state shares no buffer with the parameters or with the user's key, so that all may be donated."""
    key = jax.random.key(0)
    tx, reference, params = row.make(RATE, RULES, key=key), Reference(row), nested(PARAMS)
    state = tx.init(params)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state, jax.random.key_data(key)))]
    assert len(set(buffers)) == len(buffers)

    @functools.partial(jax.jit, donate_argnums=(0, 1), keep_unused=True)
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    expected = PARAMS
    for gradient in GRADIENTS:
        given = params, state
        params, state = step(params, state, nested(gradient))
        expected = reference.step(expected, gradient)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert_close(flat(params), expected)
    jax.random.uniform(key)
    again, _ = step(nested(PARAMS), tx.init(nested(PARAMS)), nested(GRADIENTS[0]))
    assert_close(flat(again), Reference(row).step(PARAMS, GRADIENTS[0]))


# The state.


def state_of(row, state):
    """Returns the one state of the transform of `row` in the state of an optimizer."""
    (found,) = [
        part
        for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, row.state))
        if isinstance(part, row.state)
    ]
    return found


FIELDS = {
    jaxreg.PenaltyState: ("count", "penalty", "key", "memory"),
    jaxreg.DecoupledState: ("count", "penalty", "key", "memory", "inner_state"),
    jaxreg.ProximalState: ("count", "penalty", "key", "memory", "inner_state"),
}


def test_every_state_has_its_layout():
    assert {row.state for row in TRANSFORMS} == set(FIELDS)
    assert {kind: kind._fields for kind in FIELDS} == FIELDS


@every_transform
def test_the_state_keeps_its_structure(row):
    """The state has one structure, with one dtype for each leaf, before the first update and after each.

    The updates are the same whether the penalty is tracked or not.
    """
    found = {}
    for track, key in ((True, None), (False, jax.random.key(0))):
        tx, params = row.make(RATE, RULES, track=track, key=key), nested(PARAMS)
        update, state = jax.jit(tx.update), tx.init(params)
        states, updates = [state], []
        for gradient in GRADIENTS[:2]:
            step, state = update(nested(gradient), state, params)
            states += [state]
            updates += [step]
        found[track] = updates
        for count, state in enumerate(states):
            chex.assert_trees_all_equal_structs(state, states[0])
            chex.assert_trees_all_equal_shapes_and_dtypes(state, states[0])
            assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
            ours = state_of(row, state)
            chex.assert_type(ours.count, jnp.int32)
            assert ours.count == count
            assert ours.memory == ()
            assert (ours.key is None) == (key is None)
            assert (ours.penalty is None) != track
    chex.assert_trees_all_close(found[True], found[False], rtol=1e-6)


@every_transform
def test_the_count_stops_at_its_largest(row):
    tx, largest, params = make(row), jnp.iinfo(jnp.int32).max, nested(PARAMS)

    def is_ours(part):
        return isinstance(part, row.state)

    state = jax.tree.map(
        lambda part: part._replace(count=jnp.asarray(largest, jnp.int32)) if is_ours(part) else part,
        tx.init(params),
        is_leaf=is_ours,
    )
    _, state = tx.update(nested(GRADIENTS[0]), state, params)
    assert state_of(row, state).count == largest


@every_transform
def test_the_penalty_is_tracked_where_the_update_met_the_parameters(row):
    """It is 0 before the first update, in float32, and not scaled by the learning rate."""
    tx, params = make(row), nested(PARAMS)
    state, step = tx.init(params), stepper(tx)
    tracked = state_of(row, state).penalty
    chex.assert_shape(tracked, ())
    chex.assert_type(tracked, jnp.float32)
    assert tracked == 0.0
    for gradient in GRADIENTS:
        met = params
        params, state = step(params, state, nested(gradient))
        np.testing.assert_allclose(state_of(row, state).penalty, RULES(met), rtol=1e-6)
        np.testing.assert_allclose(penalty(state), Reference(row).cost(flat(met)), rtol=1e-5)


@every_transform
@pytest.mark.parametrize("options", [{"track": False}, {"key": jax.random.key(1)}], ids=["untracked", "key"])
def test_checkpoints(options, row):
    """A state that was written and read goes on to the same bits, by Flax and by pickle."""
    tx, params = row.make(RATE, RULES, **options), nested(PARAMS)
    state, step = tx.init(params), stepper(tx)
    for gradient in GRADIENTS[:2]:
        params, state = step(params, state, nested(gradient))
    expected = step(params, state, nested(GRADIENTS[2]))
    by_flax = flax.serialization.from_bytes(tx.init(params), flax.serialization.to_bytes(state))
    for restored in (by_flax, pickle.loads(pickle.dumps(state))):
        chex.assert_trees_all_equal_structs(restored, state)
        chex.assert_trees_all_equal(restored, state)
        chex.assert_trees_all_equal(step(params, restored, nested(GRADIENTS[2])), expected)


@every_transform
def test_map_params_meets_the_moments_alone(row):
    """optax finds the parts of a state that are like parameters. The state of a transform has none of its own."""
    tx, params = make(row), nested(PARAMS)
    _, state = tx.update(nested(GRADIENTS[0]), tx.init(params), params)
    doubled = optax.tree.map_params(tx, lambda leaf: 2 * leaf, state)
    chex.assert_trees_all_equal_structs(doubled, state)
    ours, before = state_of(row, doubled), state_of(row, state)
    chex.assert_trees_all_equal(ours[:4], before[:4])
    for name in ("mu", "nu"):
        found = [value for _, value in optax.tree.get_all_with_path(doubled, name)]
        expected = [
            jax.tree.map(lambda leaf: 2 * leaf, value) for _, value in optax.tree.get_all_with_path(state, name)
        ]
        assert len(found) == row.adam
        chex.assert_trees_all_equal(found, expected)


@every_transform
def test_a_scan_over_steps(row):
    tx, reference = make(row), Reference(row)

    @jax.jit
    def train(params, gradients):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), optax.tree.get(state, "penalty")

        return jax.lax.scan(step, (params, tx.init(params)), gradients)

    (params, state), penalties = train(nested(PARAMS), jax.tree.map(lambda *x: jnp.stack(x), *map(nested, GRADIENTS)))
    expected = PARAMS
    for gradient, tracked in zip(GRADIENTS, penalties, strict=True):
        expected = reference.step(expected, gradient)
        np.testing.assert_allclose(tracked, reference.penalty, rtol=1e-5)
    assert_close(flat(params), expected)
    assert_same_zeros(row, flat(params), expected)
    assert state_of(row, state).count == len(GRADIENTS)


@every_transform
def test_strengths_may_be_traced_and_nothing_retraces(row):
    """A new value of a strength, a rate or a step is no new program."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(strengths, rate, params, state, gradients):
        tx = row.make(rate, rules(strengths))
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for scale, rate in ((1.0, 0.1), (0.0, 0.1), (3.0, 0.02)):
        strengths = {name: (scale * l1, scale * l2) for name, (l1, l2) in STRENGTHS.items()}
        reference = Reference(row, strengths)
        params, expected, state = nested(PARAMS), PARAMS, make(row).init(nested(PARAMS))
        for gradient in GRADIENTS[:2]:
            params, state = step(strengths, rate, params, state, nested(gradient))
            expected = reference.step(expected, gradient, rate)
        assert_close(flat(params), expected)


@every_transform
def test_a_step_is_differentiated_with_respect_to_strengths(row):
    def after(strengths):
        tx, params = (
            row.make(RATE, rules({"kernel": (strengths[0], strengths[1]), "bias": (strengths[2], 0.0)})),
            nested(PARAMS),
        )
        updates, _ = tx.update(nested(GRADIENTS[0]), tx.init(params), params)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(optax.apply_updates(params, updates)))

    def by_hand(strengths):
        reference = Reference(row, {"kernel": (strengths[0], strengths[1]), "bias": (strengths[2], 0.0)})
        return sum(np.sin(value).sum() for value in reference.step(PARAMS, GRADIENTS[0]).values())

    at = np.array([*STRENGTHS["kernel"], STRENGTHS["bias"][0]])
    slopes = [(by_hand(at + h) - by_hand(at - h)) / 2e-6 for h in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(jax.jit(jax.grad(after))(jnp.asarray(at, jnp.float32)), slopes, rtol=1e-3, atol=1e-4)


# Random keys.


class Noisy(jaxreg.Regularizer):
    """A penalty whose value shows the key that it was given."""

    factor: float = 0.5

    @property
    def needs_key(self):
        return True

    def __call__(self, x, *, key):
        return self.factor * jnp.sum(jnp.abs(x)) * jax.random.uniform(key)

    def prox(self, x, step):
        return jaxreg.prox.l1(x, step * self.factor)

    has_metric_prox = True


NOISY = Rules((r"hidden/kernel$", Noisy(2.0)))
of_noisy = jax.jit(lambda params, key: NOISY(params, key=key))


@every_transform
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys(kind, row):
    """Each update has a key of its own, which is neither the one that was in the state nor the one that it keeps."""
    key = jax.random.key(7, impl=kind)
    tx, params = row.make(RATE, NOISY, key=key), nested(PARAMS)
    update, state, seen = jax.jit(tx.update), tx.init(params), []
    chex.assert_trees_all_equal(state_of(row, state).key, jax.random.key_data(key))
    for gradient in GRADIENTS:
        before = jax.random.wrap_key_data(state_of(row, state).key, impl=kind)
        _, state = update(nested(gradient), state, params)
        after = jax.random.wrap_key_data(state_of(row, state).key, impl=kind)
        seen += [float(state_of(row, state).penalty)]
        for other in (before, after, key):
            assert abs(float(of_noisy(params, other)) - seen[-1]) > 1e-4
    assert len(set(seen)) == len(seen)
    again = tx.init(params)
    for gradient, expected in zip(GRADIENTS, seen, strict=True):
        _, again = update(nested(gradient), again, params)
        assert float(state_of(row, again).penalty) == expected


@every_transform
def test_rules_that_sample_need_a_key(row):
    tx, params = row.make(RATE, NOISY), nested(PARAMS)
    with pytest.raises((TypeError, ValueError), match="key"):
        tx.update(nested(GRADIENTS[0]), tx.init(params), params)


@every_transform
@pytest.mark.parametrize(
    "key", [0, "key", jnp.zeros(2, jnp.uint32), jax.random.PRNGKey(0)], ids=["int", "str", "data", "raw"]
)
def test_a_key_of_another_kind_is_an_error(key, row):
    with pytest.raises(TypeError, match=r"`key` must be a key from `jax.random.key`, got"):
        row.make(RATE, RULES, key=key)


@every_transform
@pytest.mark.parametrize("track", [1, None, "yes", np.bool_(True), jnp.asarray(True)], ids=repr)
def test_track_must_be_a_bool(track, row):
    with pytest.raises(TypeError, match="`track` must be a bool, got"):
        row.make(RATE, RULES, track=track)


@every_transform
def test_parameters_must_be_given(row):
    tx = make(row)
    with pytest.raises(ValueError, match="`params` must be given to `update`"):
        tx.update(nested(GRADIENTS[0]), tx.init(nested(PARAMS)))


# Training states.


@every_transform
def test_train_state(row):
    state = TrainState.create(apply_fn=None, params=nested(PARAMS), tx=make(row))
    step, reference, expected = jax.jit(lambda state, grads: state.apply_gradients(grads=grads)), Reference(row), PARAMS
    for gradient in GRADIENTS:
        state = step(state, nested(gradient))
        expected = reference.step(expected, gradient)
        np.testing.assert_allclose(penalty(state.opt_state), reference.penalty, rtol=1e-5)
    assert_close(flat(state.params), expected)
    assert_same_zeros(row, flat(state.params), expected)
    assert state_of(row, state.opt_state).count == len(GRADIENTS)


class Nnx(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(1))


@every_transform
def test_nnx_optimizer(row):
    model = Nnx()
    nnx.update(model, nnx.State(nested(PARAMS)))
    optimizer, reference, expected = nnx.Optimizer(model, make(row), wrt=nnx.Param), Reference(row), PARAMS

    @nnx.jit
    def step(model, optimizer, gradients):
        def loss(model):
            params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
            return sum(jnp.vdot(p, g) for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(gradients), strict=True))

        optimizer.update(model, nnx.grad(loss)(model))

    for gradient in GRADIENTS:
        step(model, optimizer, nested(gradient))
        expected = reference.step(expected, gradient)
        tracked = optax.tree.get(optimizer.opt_state, "penalty")[...]
        np.testing.assert_allclose(tracked, reference.penalty, rtol=1e-5)
    params = flat(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert_close(params, expected)
    assert_same_zeros(row, params, expected)
