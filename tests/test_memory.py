"""Memory: what regularizers and constraints keep for each parameter, in every tree, transform and checkpoint."""

import functools
import pickle

import chex
import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import references as ref
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_shards import AUTO, PLACES, in_shards, within

import jaxreg
from jaxreg import L1, AdaptiveL1, Anchor, Regularizer, Rules
from jaxreg.constraints import KeepNorm, KeepZeros, MaxNorm, NonNeg

pytestmark = pytest.mark.standard_promotion  # optimizers of optax mix dtypes

# A quadratic loss ½ Σ d (w − t)², whose sum with ½ λ Σ F (w − w₀)² has its minimum where both pulls meet.
TARGET = np.array([[1.0, -2.0, 0.5], [3.0, 0.1, -0.7]])
CURVATURE = np.array([[1.0, 0.5, 2.0], [0.7, 1.3, 1.0]])
START = np.array([[0.2, -0.4, 1.0], [0.3, 0.8, -1.5]])
PRETRAINED = np.array([[0.5, -1.0, -0.5], [2.0, 0.0, 0.7]])
FISHER = np.array([[0.1, 2.0, 0.0], [1.0, 0.3, 0.8]])
LAM = 0.6
PATTERN = r"kernel$"
ANCHORED = Rules((PATTERN, Anchor(LAM)))


def tree(values):
    return {"layer": {"kernel": jnp.asarray(values, jnp.float32), "bias": jnp.zeros(3)}}


def loss(params):
    fit = jnp.sum(CURVATURE.astype(np.float32) * jnp.square(params["layer"]["kernel"] - TARGET.astype(np.float32)))
    return fit / 2 + jnp.sum(jnp.square(params["layer"]["bias"] - 1))


def minimum(reference, fisher=1.0):
    pull = LAM * np.asarray(fisher)
    return (CURVATURE * TARGET + pull * reference) / (CURVATURE + pull)


def trained(tx, loss=loss, steps=4_000):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = tree(START)
    train = jax.jit(lambda p, s: jax.lax.scan(step, (p, s), length=steps)[0])
    params, state = train(params, tx.init(params))
    return params["layer"]["kernel"], state


RATE = optax.cosine_decay_schedule(0.05, 4_000)
PLACEMENTS = {
    "coupled, SGD": lambda **m: optax.chain(jaxreg.add_penalty_gradients(ANCHORED, **m), optax.sgd(RATE)),
    "coupled, Adam": lambda **m: optax.chain(jaxreg.add_penalty_gradients(ANCHORED, **m), optax.adam(RATE)),
    "decoupled, SGD": lambda **m: jaxreg.decoupled(optax.sgd(RATE), ANCHORED, RATE, **m),
    "proximal SGD": lambda **m: jaxreg.proximal_sgd(RATE, ANCHORED, **m),
    "proximal Adam": lambda **m: jaxreg.proximal_adam(RATE, ANCHORED, **m),
    "proximal": lambda **m: jaxreg.proximal(optax.adam(RATE), ANCHORED, RATE, **m),
}
MEMORIES = {
    "L2-Init": (lambda: None, START, 1.0),
    "L2-SP": (lambda: ANCHORED.init(tree(PRETRAINED)), PRETRAINED, 1.0),
    "EWC": (lambda: ANCHORED.init(tree(PRETRAINED), importance=tree(FISHER)), PRETRAINED, FISHER),
}


@pytest.mark.parametrize("kind", MEMORIES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_anchors_reach_the_minimum_of_a_quadratic(placement, kind):
    memory, reference, fisher = MEMORIES[kind]
    made = memory()
    given = {} if made is None else {"memory": made}
    found, state = trained(PLACEMENTS[placement](**given))
    np.testing.assert_allclose(found, minimum(reference, fisher), atol=1e-3 if "coupled, Adam" in placement else 3e-5)
    kept = optax.tree.get(state, "memory")["layer"]["kernel"]
    chex.assert_trees_all_equal(kept[0] if kind == "EWC" else kept, jnp.float32(reference))


@pytest.mark.parametrize("kind", ["L2-SP", "EWC"])
def test_anchors_in_the_loss(kind):
    memory, reference, fisher = MEMORIES[kind]
    made = memory()
    found, _ = trained(optax.sgd(RATE), lambda params: loss(params) + ANCHORED(params, memory=made))
    np.testing.assert_allclose(found, minimum(reference, fisher), atol=3e-5)


@pytest.mark.parametrize("shape", [(3, 4), (), (2, 3, 4)])
@pytest.mark.parametrize("with_importance", [False, True])
def test_an_anchor_is_its_formula(shape, with_importance):
    rng = np.random.default_rng(0)
    x, start, fisher = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    fisher = np.abs(fisher)
    anchor = 2.0 * Anchor(0.7)
    extras = {"importance": jnp.asarray(fisher)} if with_importance else {}
    memory = anchor.init(jnp.asarray(start), **extras)
    importance = fisher if with_importance else 1.0
    expected = 1.4 * ref.anchor(x[None], start, importance)[0]
    value, gradient = jax.value_and_grad(anchor)(jnp.asarray(x), memory=memory)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, 1.4 * importance * (x - start), rtol=1e-5, atol=1e-6)
    for step in (0.3, np.abs(rng.normal(size=shape)).astype(np.float32)):
        pull = step * 1.4 * importance
        np.testing.assert_allclose(
            anchor.prox(jnp.asarray(x), step, memory=memory), (x + pull * start) / (1 + pull), rtol=1e-5, atol=1e-6
        )
    assert anchor.has_prox
    assert anchor.has_metric_prox
    low = anchor(jnp.asarray(x, jnp.bfloat16), memory=memory)
    assert low.dtype == jnp.float32


@pytest.mark.parametrize("name", ["gamma", "epsilon"])
def test_what_only_init_reads_is_no_schedule(name):
    with pytest.raises(TypeError, match=f"`{name}` must be a number, because only `init` reads it, got the schedule"):
        AdaptiveL1(0.1, **{name: lambda count: 1.0})
    AdaptiveL1(lambda count: 0.1)


@pytest.mark.parametrize("shape", [(3, 4), (), (2, 3, 4)])
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_adaptive_weights_are_their_formula(shape, gamma):
    rng = np.random.default_rng(0)
    x, first, given = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    adaptive = 2.0 * AdaptiveL1(0.7, gamma=gamma, epsilon=0.1)
    for extras, weights in (({}, (np.abs(first) + 0.1) ** -gamma), ({"weights": np.abs(given)}, np.abs(given))):
        memory = adaptive.init(jnp.asarray(first), **jax.tree.map(jnp.asarray, extras))
        np.testing.assert_allclose(memory, weights, rtol=1e-6)
        value, gradient = jax.value_and_grad(adaptive)(jnp.asarray(x), memory=memory)
        np.testing.assert_allclose(value, 1.4 * ref.weighted_l1(x[None], weights)[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, 1.4 * weights * np.sign(x), rtol=1e-6)
        for step in (0.3, np.abs(rng.normal(size=shape)).astype(np.float32)):
            found = adaptive.prox(jnp.asarray(x), step, memory=memory)
            expected = np.sign(x) * np.maximum(np.abs(x) - step * 1.4 * weights, 0)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert adaptive.has_prox
    assert adaptive.has_metric_prox
    assert adaptive(jnp.asarray(x, jnp.bfloat16), memory=memory).dtype == jnp.float32


def test_adaptive_weights_at_awkward_points():
    """They are finite at 0 and at any size, in float32 for a narrow array, and show a NaN."""
    for epsilon, gamma in ((1e-3, 1.0), (1e-30, 2.0), (1e30, 2.0)):
        made = AdaptiveL1(1.0, gamma=gamma, epsilon=epsilon)
        memory = made.init(jnp.array([0.0, 1e-42, 1e-30, 1e38], jnp.float32))
        assert np.all(np.isfinite(memory))
        assert made(jnp.zeros(4), memory=memory) == 0
        assert not np.any(jax.grad(made)(jnp.zeros(4), memory=memory))
    narrow = AdaptiveL1(1.0).init(jnp.ones(2, jnp.float16))
    np.testing.assert_allclose(narrow, np.full(2, 1 / 1.001, np.float32), rtol=1e-6)
    assert np.isnan(AdaptiveL1(1.0).init(jnp.array([jnp.nan]))[0])
    assert AdaptiveL1(1.0).init(jnp.ones((0, 3))).shape == (0, 3)


ADAPTIVE = Rules((PATTERN, AdaptiveL1(LAM, epsilon=0.25)))


@pytest.mark.parametrize("place", [*PLACES, "with specs"])
def test_adaptive_weights_of_shards(place):
    """Memory, penalty, gradient and prox are those of the whole, and divided as the parameter is."""
    params, spec = tree(np.arange(1.0, 33.0).reshape(8, 4)), {"layer": {"kernel": P("d", "m"), "bias": P()}}

    def work(rules, params):
        memory = rules.init(params)
        value, gradients = jax.value_and_grad(lambda p: rules(p, memory=memory))(params)
        found = memory["layer"]["kernel"], gradients["layer"]["kernel"], rules.prox(params, 0.3, memory=memory)["layer"]
        return value, *found[:2], found[2]["kernel"]

    expected = work(ADAPTIVE, params)
    if place == "with specs":
        known, out = ADAPTIVE.with_specs(spec), P("d", "m")
        found = in_shards(lambda p: work(known, p), spec, (P(), out, out, out))(params)
    else:
        with within(place):
            shardings = jax.tree.map(lambda s: NamedSharding(PLACES[place][0], s), spec)
            found = jax.jit(lambda p: work(ADAPTIVE, p))(jax.device_put(params, shardings))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("kind", ["from the start", "from others", "given"])
@pytest.mark.parametrize("optimizer", [jaxreg.proximal_sgd, jaxreg.proximal_adam])
def test_adaptive_weights_reach_the_minimum_of_a_quadratic(optimizer, kind):
    trees = {
        "from the start": (None, 1 / (np.abs(START) + 0.25)),
        "from others": (ADAPTIVE.init(tree(PRETRAINED)), 1 / (np.abs(PRETRAINED) + 0.25)),
        "given": (ADAPTIVE.init(tree(START), weights=tree(FISHER)), FISHER),
    }
    memory, weights = trees[kind]
    found, _ = trained(optimizer(RATE, ADAPTIVE, **({} if memory is None else {"memory": memory})))
    least = CURVATURE * np.abs(TARGET) - LAM * weights
    expected = np.where(least > 0, np.sign(TARGET) * least / CURVATURE, 0)
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_memory_is_never_differentiated():
    params, memory = tree(START), ANCHORED.init(tree(PRETRAINED))
    slopes = jax.grad(lambda memory: ANCHORED(params, memory=memory))(memory)
    assert not any(leaf.any() for leaf in jax.tree.leaves(slopes))
    by_params = jax.grad(lambda params: ANCHORED(params, memory=ANCHORED.init(params)))(params)
    assert not by_params["layer"]["kernel"].any()


# Trees.


class Model(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.layer.kernel[...] = jnp.asarray(PRETRAINED, jnp.float32)


class Layer(eqx.Module):
    kernel: jax.Array
    bias: jax.Array
    name: str = eqx.field(static=True, default="layer")


class Net(eqx.Module):
    layer: Layer


def boxed(values):
    return {"layer": {"kernel": nn.Partitioned(jnp.asarray(values, jnp.float32), ("in", "out")), "bias": jnp.zeros(3)}}


WRAPPED = {
    "dict": lambda: tree(PRETRAINED),
    "numpy": lambda: jax.tree.map(np.asarray, tree(PRETRAINED)),
    "frozen": lambda: FrozenDict(tree(PRETRAINED)),
    "boxed": lambda: boxed(PRETRAINED),
    "an nnx module": Model,
    "its state": lambda: nnx.state(Model(), nnx.Param),
    "its pure state": lambda: nnx.to_pure_dict(nnx.state(Model(), nnx.Param)),
    "equinox": lambda: Net(Layer(jnp.asarray(PRETRAINED, jnp.float32), jnp.zeros(3))),
    "a larger tree": lambda: tree(PRETRAINED) | {"head": {"kernel": jnp.ones((3, 9))}, "steps": 3},
}


@pytest.mark.parametrize("params", WRAPPED)
@pytest.mark.parametrize("pretrained", WRAPPED)
def test_trees_are_matched_by_path(pretrained, params):
    """The penalty of the pretrained weights is 0 in any wrapping, and a transform keeps their structure."""
    memory = ANCHORED.init(WRAPPED[pretrained](), importance=tree(FISHER) | {"head": {"kernel": jnp.ones((3, 9))}})
    given = WRAPPED[params]()
    if params == "a larger tree":
        given = {"layer": given["layer"]}
    assert ANCHORED(given, memory=memory) == 0.0
    if params != "an nnx module":
        moved = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array_like(x) else x, given)
        np.testing.assert_allclose(ANCHORED(moved, memory=memory), LAM / 2 * FISHER.sum(), rtol=1e-6)
        tx = jaxreg.add_penalty_gradients(ANCHORED, memory=memory)
        state = tx.init(given)
        assert [path for path, _ in jax.tree_util.tree_leaves_with_path(state.memory)]
        updates, after = tx.update(jax.tree.map(jnp.zeros_like, given), state, moved)
        chex.assert_trees_all_equal(after.memory, state.memory)
        np.testing.assert_allclose(
            next(u for u in jax.tree.leaves(updates) if np.shape(u) == (2, 3)), LAM * FISHER, rtol=1e-5
        )


def test_memory_has_the_structure_of_the_tree():
    for params in (
        tree(START),
        FrozenDict(tree(START)),
        nnx.state(Model(), nnx.Param),
        WRAPPED["equinox"](),
        boxed(START),
    ):
        everything = Rules((r".*", Anchor(0.1))).init(params)
        assert jax.tree.structure(everything) == jax.tree.structure(params)
        chex.assert_trees_all_equal(everything, params)
        memory = ANCHORED.init(params)
        chex.assert_trees_all_equal(
            jax.tree.leaves(memory), [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (2, 3)]
        )
    assert Rules((PATTERN, L1(0.1))).init(tree(START)) == ()
    assert ANCHORED.init(tree(START))["layer"]["bias"] == optax.MaskedNode()


FAULTS = {
    "nothing": (lambda: ANCHORED(tree(START)), r"at `layer/kernel`, under rule 0 .*`memory` must be given"),
    "a missing entry": (
        lambda: ANCHORED(tree(START), memory=ANCHORED.init({"other": {"kernel": jnp.ones((2, 3))}})),
        r"at `layer/kernel`.*`memory` has no entry for it; the nearest paths are \['other/kernel'",
    ),
    "another shape": (
        lambda: ANCHORED(tree(START), memory=ANCHORED.init({"layer": {"kernel": jnp.ones((3, 2))}})),
        r"at `layer/kernel`.*of the shape of the array, float32\[2,3\], got float32\[3,2\]",
    ),
    "another shape, at init": (
        lambda: jaxreg.add_penalty_gradients(ANCHORED, memory=ANCHORED.init({"layer": {"kernel": jnp.ones(3)}})).init(
            tree(START)
        ),
        r"at `layer/kernel`.*got float32\[3\]",
    ),
    "a missing entry, at init": (
        lambda: jaxreg.proximal_adam(0.1, ANCHORED, memory=ANCHORED.init({"kernel": jnp.ones((2, 3))})).init(
            tree(START)
        ),
        r"at `layer/kernel`.*has no entry",
    ),
    "a missing importance": (
        lambda: ANCHORED.init(tree(START), importance={"layer": {"bias": jnp.ones(3)}}),
        r"at `layer/kernel`.*`importance` has no entry",
    ),
    "a misshapen importance": (
        lambda: ANCHORED.init(tree(START), importance={"layer": {"kernel": jnp.ones(3)}}),
        r"at `layer/kernel`.*`importance` must have the shape of the array, float32\[2,3\], got float32\[3\]",
    ),
    "a negative importance": (
        lambda: ANCHORED.init(tree(START), importance=jax.tree.map(np.asarray, tree(-FISHER))),
        r"at `layer/kernel`.*`importance` must be finite and >= 0",
    ),
    "misshapen weights": (
        lambda: ADAPTIVE.init(tree(START), weights={"layer": {"kernel": jnp.ones(3)}}),
        r"at `layer/kernel`.*`weights` must have the shape of the array, float32\[2,3\], got float32\[3\]",
    ),
    "negative weights": (
        lambda: ADAPTIVE.init(tree(START), weights=jax.tree.map(np.asarray, tree(-FISHER))),
        r"at `layer/kernel`.*`weights` must be finite and >= 0",
    ),
    "memory of another shape for weights": (
        lambda: ADAPTIVE(tree(START), memory=ADAPTIVE.init({"layer": {"kernel": jnp.ones((3, 2))}})),
        r"at `layer/kernel`.*`memory` must be the weights from `init`, of the shape",
    ),
    "no importance": (
        lambda: ANCHORED.init(tree(START), importance=jax.tree.map(lambda x: x > 0, tree(FISHER))),
        r"at `layer/kernel`.*`importance` must be a real number, got bool\[2,3\]",
    ),
    "an unknown tree": (
        lambda: ANCHORED.init(tree(START), fisher=tree(FISHER)),
        "no regularizer takes a tree named `fisher`",
    ),
    "a tree that nobody takes": (
        lambda: Rules((PATTERN, KeepNorm())).init(tree(START), importance=tree(FISHER)),
        "no regularizer takes a tree named `importance`",
    ),
    "memory for nobody": (
        lambda: Rules((PATTERN, L1(0.1)))(tree(START), memory=tree(START)),
        "`memory` must be `\\(\\)`, because no rule keeps anything",
    ),
    "memory for nobody, in a transform": (
        lambda: jaxreg.add_penalty_gradients(Rules((PATTERN, L1(0.1))), memory=tree(START)),
        "`memory` must be None, because no rule keeps anything",
    ),
    "memory for a function": (
        lambda: jaxreg.decoupled(optax.sgd(0.1), lambda p: 0.0, 0.1, memory=tree(START)),
        "`memory` must be None where `rules` is a function",
    ),
    "a pattern that met nothing": (
        lambda: Rules((r"kernle$", Anchor(0.1))).init(tree(START)),
        "met no parameter; the nearest paths",
    ),
    "the memory of a sum for its term": (
        lambda: Rules((PATTERN, Anchor(0.1) + L1(0.1)))(tree(START), memory=ANCHORED.init(tree(START))),
        r"at `layer/kernel`.*`memory` of a sum of 2 terms must be a tuple",
    ),
    "no memory for a constraint": (
        lambda: Rules((PATTERN, KeepNorm())).prox(tree(START)),
        r"at `layer/kernel`.*`memory` must be given for KeepNorm\(\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    call, words = FAULTS[name]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_a_missing_head_is_no_fault():
    """Rules that keep nothing may be for what the pretrained tree lacks."""
    rules = Rules((r"head/", L1(0.1)), (PATTERN, Anchor(LAM)))
    memory = rules.init(tree(PRETRAINED))
    params = tree(START) | {"head": {"kernel": jnp.ones((3, 2))}}
    np.testing.assert_allclose(
        rules(params, memory=memory), 0.6 + LAM / 2 * np.sum((START - PRETRAINED) ** 2), rtol=1e-6
    )


# Classes of the user's own.


class Slow(Regularizer):
    """A pull towards a moving average, whose memory changes at each step."""

    factor: float = 0.5
    decay: float = 0.9

    def init(self, x, *, first=None):
        return {"average": x if first is None else first, "count": jnp.zeros((), jnp.int32)}

    def __call__(self, x, *, memory):
        return self.factor * jnp.sum(jnp.square(x - memory["average"]))

    def updated(self, x, memory):
        average = self.decay * memory["average"] + (1 - self.decay) * x
        return {"average": average, "count": memory["count"] + 1}


@pytest.mark.parametrize("params", ["dict", "boxed", "its state", "equinox"])
def test_memory_that_changes_at_each_step(params):
    given = WRAPPED[params]()
    rules = Rules((PATTERN, 2.0 * Slow() + L1(0.0)))
    tx = jaxreg.decoupled(optax.sgd(0.1), rules, 0.1)
    state = tx.init(given)
    update = jax.jit(tx.update)
    average, x = PRETRAINED.copy(), PRETRAINED.copy()
    for _ in range(3):
        gradients = jax.tree.map(jnp.ones_like, given)
        updates, state = update(gradients, state, given)
        given = optax.apply_updates(given, updates)
        x, average = x - 0.1 * (1 + 2 * (x - average)), 0.9 * average + 0.1 * x
        (kernel,) = [leaf for leaf in jax.tree.leaves(given) if leaf.shape == (2, 3)]
        np.testing.assert_allclose(kernel, x, rtol=1e-5, atol=1e-6)
    (found,) = [leaf for leaf in jax.tree.leaves(state.memory) if leaf.shape == (2, 3)]
    np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6)
    assert [int(leaf) for leaf in jax.tree.leaves(state.memory) if leaf.shape == ()] == [3]


def test_memory_in_a_loop_of_ones_own():
    rules = Rules((PATTERN, Slow()))
    params = tree(START)
    memory = rules.init(params, first=tree(PRETRAINED))
    np.testing.assert_allclose(rules(params, memory=memory), 0.5 * np.sum((START - PRETRAINED) ** 2), rtol=1e-6)
    memory = jax.jit(rules.updated)(params, memory)
    np.testing.assert_allclose(memory["layer"]["kernel"]["average"], 0.9 * PRETRAINED + 0.1 * START, rtol=1e-6)
    assert ANCHORED.updated(params, memory) is memory


def test_the_memory_of_a_sum_is_a_tuple():
    total = Anchor(0.5) + L1(0.1) + 3.0 * Anchor(1.0)
    memory = total.init(jnp.asarray(PRETRAINED, jnp.float32))
    assert isinstance(memory, tuple)
    assert [jax.tree.map(jnp.shape, m) for m in memory] == [(2, 3), (), (2, 3)]
    x = jnp.asarray(START, jnp.float32)
    expected = 3.5 / 2 * np.sum((START - PRETRAINED) ** 2) + 0.1 * np.abs(START).sum()
    np.testing.assert_allclose(total(x, memory=memory), expected, rtol=1e-6)


# Transforms and what wraps them.


KEEPING = Rules((PATTERN, KeepNorm()), (r"bias$", KeepZeros()))


def state_of(tx, params):
    return optax.tree.get(tx.init(params), "memory")


def test_memory_does_not_alias_what_is_donated():
    params, pretrained = tree(START), tree(PRETRAINED)
    memory = ANCHORED.init(pretrained)
    tx = jaxreg.proximal_adam(0.1, ANCHORED, memory=memory)
    default = jaxreg.proximal_adam(0.1, ANCHORED)
    states = [tx.init(params), tx.init(params), default.init(params)]
    step = jax.jit(lambda p, s: tx.update(jax.tree.map(jnp.ones_like, p), s, p), donate_argnums=(0, 1))
    for state in states:
        step(jax.tree.map(jnp.copy, params), state)
    chex.assert_trees_all_equal(memory, ANCHORED.init(tree(PRETRAINED)))
    chex.assert_trees_all_equal(params, tree(START))
    state = default.init(params)
    jax.tree.map(lambda x: x.delete(), params)
    assert np.isfinite(state.memory["layer"]["kernel"]).all()


class Wrapper(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="layer")(x)


def test_flax_linen_train_state():
    params = tree(START)
    tx = optax.chain(jaxreg.add_penalty_gradients(ANCHORED), optax.sgd(0.1))
    state = TrainState.create(apply_fn=Wrapper().apply, params=params, tx=tx)
    moved = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    again = moved.apply_gradients(grads=jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(again.params["layer"]["kernel"], START - 0.1 + 0.1 * LAM * 0.1, rtol=1e-5)


KEPT_BY_NNX = {
    "a sum": lambda: jaxreg.proximal(optax.sgd(0.1), Rules((PATTERN, Anchor(LAM) + NonNeg())), 0.1),
    "a sum, the other way": lambda: jaxreg.proximal(optax.sgd(0.1), Rules((PATTERN, NonNeg() + Anchor(LAM))), 0.1),
    "with importance": lambda: jaxreg.decoupled(
        optax.sgd(0.1), ANCHORED, 0.1, memory=ANCHORED.init(tree(PRETRAINED), importance=tree(FISHER))
    ),
    "norms": lambda: jaxreg.proximal(optax.sgd(0.1), Rules((PATTERN, KeepNorm(group_axis=())))),
    "averages": lambda: jaxreg.decoupled(optax.sgd(0.1), Rules((PATTERN, L1(0.1) + Slow())), 0.1),
    "averages alone": lambda: jaxreg.decoupled(optax.sgd(0.1), Rules((PATTERN, Slow())), 0.1),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", KEPT_BY_NNX)
def test_nnx_optimizer(name, jitted):
    """NNX turns tuples and dicts inside of variables into states. The steps are those of a dict."""
    model, tx = Model(), KEPT_BY_NNX[name]()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.sum(model.layer.kernel[...] * 3))(model)
        optimizer.update(model, gradients)

    params = tree(PRETRAINED)
    state = tx.init(params)
    for _ in range(3):
        (nnx.jit(step) if jitted else step)(model, optimizer)
        gradients = {"layer": {"kernel": jnp.full((2, 3), 3.0), "bias": jnp.zeros(3)}}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(model.layer.kernel[...], params["layer"]["kernel"], rtol=1e-5, atol=1e-6)


def test_masks_partitions_and_boxes():
    params = tree(START)
    mask = {"layer": {"kernel": True, "bias": False}}
    for tx in (
        optax.masked(jaxreg.proximal(optax.sgd(0.1), ANCHORED, 0.1), mask),
        optax.partition(
            {"a": jaxreg.decoupled(optax.sgd(0.1), ANCHORED, 0.1), "b": optax.sgd(0.1)},
            {"layer": {"kernel": "a", "bias": "b"}},
        ),
        optax.MultiSteps(jaxreg.proximal(optax.sgd(0.1), ANCHORED, 0.1), 2),
        optax.apply_if_finite(jaxreg.proximal(optax.sgd(0.1), ANCHORED, 0.1), 3),
        optax.inject_hyperparams(jaxreg.proximal_sgd, static_args=("rules", "memory"))(
            learning_rate=0.1, rules=ANCHORED, memory=ANCHORED.init(params)
        ),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
        assert np.isfinite(updates["layer"]["kernel"]).all()


def test_parameters_of_a_state_can_be_mapped():
    """`optax.tree.map_params` finds memory as it finds Adam's moments."""
    params = tree(START)
    everything = Rules((r".*", Anchor(0.1)))
    tx = jaxreg.proximal_adam(0.1, everything)
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, tx.init(params))
    chex.assert_trees_all_close(doubled.memory, jax.tree.map(lambda x: 2 * x, params))
    names = jax.tree.map(lambda x: x.ndim, params)
    paired = optax.tree.map_params(tx, lambda x, name: x + name, tx.init(params), names)
    chex.assert_trees_all_close(paired.memory, jax.tree.map(lambda x: x + x.ndim, params))


def run(tx, params, state, steps):
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


RESUMED = {
    "anchor": lambda: jaxreg.proximal_adam(0.05, ANCHORED, memory=MEMORIES["EWC"][0]()),
    "norms and masks": lambda: jaxreg.proximal(optax.adam(0.05), KEEPING),
    "averages": lambda: jaxreg.decoupled(optax.adam(0.05), Rules((PATTERN, Slow() + Anchor(0.1))), 0.05),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumes_to_the_bit(name, tmp_path):
    """From orbax, from flax's bytes and from a pickle."""
    tx = RESUMED[name]()
    params, state = run(tx, tree(START), tx.init(tree(START)), 3)
    expected = run(tx, params, state, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        fresh = {"params": params, "state": RESUMED[name]().init(tree(TARGET))}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
        restored = checkpointer.restore(tmp_path / "state", abstract)
    chex.assert_trees_all_equal(run(tx, restored["params"], restored["state"], 3), expected)
    raw = flax.serialization.to_bytes(state)
    chex.assert_trees_all_equal(run(tx, params, flax.serialization.from_bytes(fresh["state"], raw), 3), expected)
    chex.assert_trees_all_equal(run(tx, params, pickle.loads(pickle.dumps(state)), 3), expected)


def test_transformations():
    params, memory = tree(START), ANCHORED.init(tree(PRETRAINED))
    value = functools.partial(ANCHORED, memory=memory)
    np.testing.assert_allclose(jax.jit(value)(params), value(params), rtol=1e-6)
    several = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    np.testing.assert_allclose(jax.vmap(value)(several)[0], value(params), rtol=1e-6)
    by_memory = jax.vmap(lambda m: ANCHORED(params, memory=m))(jax.tree.map(lambda x: jnp.stack([x, x]), memory))
    np.testing.assert_allclose(by_memory[1], value(params), rtol=1e-6)
    sweep = Rules((PATTERN, Anchor(jnp.array([0.1, 0.6]))))
    swept = jax.vmap(lambda rules: rules(params, memory=memory))(sweep)
    np.testing.assert_allclose(swept[1], value(params), rtol=1e-6)


# Arrays on a mesh.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", [P("d"), P(None, ("d", "m")), P("m", "d"), P()], ids=str)
def test_memory_is_divided_as_its_parameter(place, spec):
    rng = np.random.default_rng(0)
    x, start = (rng.normal(size=(16, 24)).astype(np.float32) for _ in range(2))
    rules = Rules((PATTERN, Anchor(0.5)))
    sharding = NamedSharding(PLACES[place][0], spec)
    with within(place):
        params, pretrained = (jax.device_put({"kernel": v}, sharding) for v in (x, start))
        tx = jaxreg.proximal(optax.sgd(0.1), rules, 0.1, memory=rules.init(pretrained), check=False)
        state = jax.jit(tx.init)(params) if place != "auto, no mesh set" else tx.init(params)
        memory = rules.init(pretrained)["kernel"]
        assert memory.sharding.is_equivalent_to(sharding, 2)
        updates, after = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    expected = (x + 0.05 * start) / 1.05
    np.testing.assert_allclose(x + updates["kernel"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.memory["kernel"], start)


@pytest.mark.parametrize("spec", [P("d"), P(None, ("d", "m")), P("m", "d")], ids=str)
@pytest.mark.parametrize("regularizer", [Anchor(0.5), Slow() + Anchor(0.2), KeepNorm(), KeepZeros()], ids=str)
def test_memory_inside_shard_map(regularizer, spec):
    rng = np.random.default_rng(0)
    x, start = (rng.normal(size=(16, 24)).astype(np.float32) for _ in range(2))
    start = np.where(np.abs(start) < 0.5, 0, start)
    rules = Rules((PATTERN, regularizer))
    known = rules.with_specs(spec)

    def found(rules, x, start):
        memory = rules.updated({"kernel": start}, rules.init({"kernel": start}))
        if isinstance(regularizer, Regularizer):
            return jax.grad(lambda x: rules({"kernel": x}, memory=memory))(x)
        return rules.prox({"kernel": x}, memory=memory)["kernel"]

    expected = found(rules, jnp.asarray(x), jnp.asarray(start))
    placed = jax.device_put({"x": x, "start": start}, NamedSharding(AUTO, spec))
    inside = in_shards(lambda both: found(known, both["x"], both["start"]), spec, spec)(placed)
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-6)


# Fisher information.


def test_the_fisher_information_of_a_softmax_regression():
    """Against the closed form: the mean of x² p(1 − p), with many samples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 4)).astype(np.float32)
    logits = np.float64(x) @ kernel
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    exact = np.einsum("ni,nj->ij", np.float64(x) ** 2, p * (1 - p)) / len(x)
    params = {"kernel": jnp.asarray(kernel), "steps": jnp.zeros((), jnp.int32)}

    def apply(params, batch):
        return batch["x"] @ params["kernel"]

    batches = [{"x": x[:3_000]}, {"x": x[3_000:]}]
    found = jaxreg.diagnostics.fisher_diagonal(apply, params, batches, jax.random.key(0))
    np.testing.assert_allclose(found["kernel"], exact, rtol=0.15)
    assert found["steps"] == 0
    again = jaxreg.diagnostics.fisher_diagonal(apply, params, batches, jax.random.key(0))
    chex.assert_trees_all_equal(found, again)
    other = jaxreg.diagnostics.fisher_diagonal(apply, params, batches, jax.random.key(1))
    assert (found["kernel"] != other["kernel"]).all()


def test_the_fisher_information_in_other_trees_and_outputs():
    module = Wrapper()
    variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
    fisher = jaxreg.diagnostics.fisher_diagonal(module.apply, variables, [jnp.ones((5, 2))], jax.random.key(0))
    chex.assert_trees_all_equal_shapes(fisher, variables)
    model = Model()
    graph, state, rest = nnx.split(model, nnx.Param, ...)
    by_state = jaxreg.diagnostics.fisher_diagonal(
        lambda state, x: nnx.merge(graph, state, rest).layer(x), state, [jnp.ones((5, 2))], jax.random.key(0)
    )
    memory = ANCHORED.init(model, importance=by_state)
    assert ANCHORED(model, memory=memory) == 0.0
    sequences = jaxreg.diagnostics.fisher_diagonal(
        lambda params, x: x[..., None] * params, jnp.ones(4), [jnp.ones((2, 7))], jax.random.key(0)
    )
    assert sequences.shape == (4,)


def test_faults_of_the_fisher_information():
    fisher, key = jaxreg.diagnostics.fisher_diagonal, jax.random.key(0)

    def apply(params, x):
        return x @ params

    for call, words in (
        (lambda: fisher(apply, jnp.ones((2, 2)), jnp.ones((4, 2)), key), "`batches` must be an iterable of batches"),
        (lambda: fisher(apply, jnp.ones((2, 2)), [], key), "`batches` must hold at least one example"),
        (lambda: fisher(apply, jnp.ones((2, 2)), [jnp.ones((4, 2))], 3), "`key` must be a key"),
        (lambda: fisher(apply, jnp.ones((2, 2)), [jnp.ones((4, 2))], None), "`key` must be a key"),
        (
            lambda: fisher(lambda p, x: jnp.sum(p), jnp.ones((2, 2)), [jnp.ones((4, 2))], key),
            "`apply` must return logits",
        ),
        (lambda: fisher(apply, jnp.ones((2, 2)), [{"a": jnp.ones(3), "b": jnp.ones(2)}], key), "as many in each"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def test_constraints_and_penalties_side_by_side():
    """A penalty with memory, and a constraint added to it."""
    rules = Rules((PATTERN, Anchor(LAM) + NonNeg()), (r"bias$", MaxNorm(0.5, group_axis=())))
    found, state = trained(jaxreg.proximal_adam(RATE, rules))
    np.testing.assert_allclose(found, np.maximum(minimum(START), 0), atol=3e-5)
    memory = optax.tree.get(state, "memory")["layer"]["kernel"]
    assert memory[1] == ()


def test_importance_keeps_its_precision():
    importance = jnp.array([1e-9, 1.0, 7e4])
    memory = Anchor(1.0).init(jnp.ones(3, jnp.float16), importance=importance)
    np.testing.assert_array_equal(memory[1], importance)
    counts = Anchor(1.0).init(jnp.ones(3), importance=jnp.arange(3))
    np.testing.assert_array_equal(counts[1], [0, 1, 2])
    assert jax.eval_shape(lambda x: Anchor(1.0).init(x, importance=x), jnp.ones(3))[1].shape == (3,)
    jax.jit(lambda x: Anchor(1.0).init(x, importance=x))(jnp.ones(3))


def test_labels_of_low_precision_are_sampled_in_float32():
    found = jaxreg.diagnostics.fisher_diagonal(
        lambda params, x: x @ params,
        jnp.zeros((1, 64), jnp.bfloat16),
        [jnp.ones((20_000, 1), jnp.bfloat16)],
        jax.random.key(0),
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.full((1, 64), (1 - 1 / 64) / 64), rtol=0.2)


def test_boxes_with_names_of_mesh_axes():
    """A box stays around what has the shape of its parameter, so that the sharded init of Flax works."""
    init = jax.jit(
        lambda: jaxreg.proximal(
            optax.sgd(0.1), Rules((r"norm", KeepNorm()), (r"zero", KeepZeros()), (r"both", NonNeg() + Anchor(0.1))), 0.1
        ).init({name: nn.Partitioned(jnp.ones((8, 4)), ("d", "m")) for name in ("norm", "zero", "both", "free")})
    )
    with jax.set_mesh(AUTO):
        state = jax.jit(init, out_shardings=nn.get_sharding(jax.eval_shape(init), AUTO))()
    assert isinstance(state.memory["zero"], nn.Partitioned)
    assert state.memory["norm"].shape == (1, 4)
    assert state.memory["both"].value[1].sharding.spec == P("d", "m")


class Renewing(Regularizer):
    """A class whose memory becomes what `renew` makes of the parameter."""

    renew: object = lambda x: x

    def init(self, x):
        return x * 0

    def __call__(self, x, *, memory):
        return jnp.sum(jnp.square(x - memory))

    def updated(self, x, memory):
        return self.renew(x)


def test_what_updated_returns():
    params = {"kernel": jnp.ones(3), "none": None}
    tx = jaxreg.decoupled(optax.sgd(0.1), Rules((r"kernel", Renewing())), 0.1)
    _, state = tx.update(params, tx.init(params), params)
    jax.tree.map(lambda x: x.delete(), params)
    np.testing.assert_array_equal(state.memory["kernel"], np.ones(3))
    for renew in (lambda x: x.astype(jnp.bfloat16), lambda x: (x, x), lambda x: x[:2]):
        rules = Rules((r"kernel", Renewing(renew)))
        given = {"kernel": jnp.ones(3)}
        with pytest.raises(TypeError, match=r"at `kernel`.*`updated` of .* must return a memory like"):
            rules.updated(given, rules.init(given))
    with pytest.raises(TypeError, match="must define `init`"):
        type("Mine", (Regularizer,), {"updated": lambda self, x, memory: memory})
    nothing = type("Nothing", (Regularizer,), {"init": lambda self, x: (), "__call__": lambda self, x, memory: 0.0})
    with pytest.raises(ValueError, match=r"at `kernel`.*`init` of .* must return a tree of arrays"):
        Rules((r"kernel", nothing())).init({"kernel": jnp.ones(3)})


class Needing(Regularizer):
    def init(self, x, teacher):
        return teacher

    def __call__(self, x, *, memory):
        return jnp.sum(jnp.square(x - memory))


def test_a_tree_that_must_be_given():
    rules = Rules((PATTERN, 2.0 * (Needing() + L1(0.1))))
    with pytest.raises(TypeError, match=r"at `layer/kernel`.*`teacher` must be given: rules.init\(tree, teacher=...\)"):
        rules.init(tree(START))
    memory = rules.init(tree(START), teacher=tree(PRETRAINED))
    np.testing.assert_allclose(
        rules(tree(START), memory=memory), 2 * np.sum((START - PRETRAINED) ** 2) + 0.2 * np.abs(START).sum(), rtol=1e-6
    )


def test_parameters_that_are_none():
    params = {"a": jnp.ones((2, 2)), "b": None}
    for rules in (Rules((r"b$", KeepNorm()), (r"a$", NonNeg())), Rules((r"a$", KeepNorm()), (r"b$", MaxNorm()))):
        tx = jaxreg.proximal(optax.sgd(0.1), rules)
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(params, state, params)
    slow = jaxreg.decoupled(optax.sgd(0.1), Rules((r"a$", Slow())), 0.1)
    _, state = slow.update(params, slow.init(params), params)
    assert state.memory["a"]["count"] == 1


def test_a_shared_weight_is_named_by_its_path():
    class Shared(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.second = self.first

    with pytest.raises(ValueError, match="`second/kernel`, which is the same parameter as `first/kernel`"):
        Rules((r"second/kernel", Anchor(0.1))).init(Shared())
