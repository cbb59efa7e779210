"""`add_penalty_gradients` alone, in every wrapper of optax that passes params, and in Flax's training states."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxreg
from jaxreg import L1, L2, Rules, add_penalty_gradients

pytestmark = pytest.mark.standard_promotion


def tree(seed=0, dtype=jnp.float32, size=4):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "hidden": {"kernel": normal(size, 3), "bias": normal(3)},
        "head": {"kernel": normal(3, 2), "bias": normal(2)},
    }


PARAMS, GRADS = tree(0), tree(1)
RULES = Rules((r"head/", None), (r"kernel$", L2(0.5)), (r"bias$", L1(0.25)))
# The gradient of RULES by hand: 2 · 0.5 · w on the kernel, 0.25 · sign(w) on the bias, nothing on the head.
EXPECTED = {
    "hidden": {
        "kernel": GRADS["hidden"]["kernel"] + PARAMS["hidden"]["kernel"],
        "bias": GRADS["hidden"]["bias"] + 0.25 * np.sign(PARAMS["hidden"]["bias"]),
    },
    "head": GRADS["head"],
}


def assert_trees_equal(got, expected, rtol=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, expected)


def step(tx, grads=GRADS, params=PARAMS, state=None):
    return jax.jit(tx.update)(grads, tx.init(params) if state is None else state, params)


def test_adds_the_gradient():
    updates, state = step(add_penalty_gradients(RULES))
    assert_trees_equal(updates, EXPECTED)
    assert state.count == 1
    np.testing.assert_allclose(state.penalty, RULES(PARAMS), rtol=1e-6)


def test_leaves_without_a_rule_come_through_as_they_are():
    grads = {**GRADS, "head": jax.tree.map(lambda g: jnp.full_like(g, -0.0), GRADS["head"])}
    updates, _ = step(add_penalty_gradients(RULES), grads)
    assert np.signbit(updates["head"]["kernel"]).all()
    assert (
        add_penalty_gradients(RULES).update(grads, step(add_penalty_gradients(RULES))[1], PARAMS)[0]["head"]["kernel"]
        is grads["head"]["kernel"]
    )


@pytest.mark.parametrize("scale", [0.0, 3.0, np.float32(3.0), jnp.asarray(3.0), lambda count: 3.0, lambda count: 0.0])
def test_scale(scale):
    updates, state = step(add_penalty_gradients(RULES, scale=scale))
    factor = scale(0) if callable(scale) else scale
    expected = jax.tree.map(lambda g, e: g + float(factor) * (e - g), GRADS, EXPECTED)
    assert_trees_equal(updates, expected, rtol=1e-5)
    np.testing.assert_allclose(state.penalty, RULES(PARAMS), rtol=1e-6)  # unscaled


def test_a_schedule_is_read_at_the_count_before_the_increment():
    seen = []
    tx = add_penalty_gradients(RULES, scale=lambda count: (seen.append(int(count)), 1.0)[1])
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(GRADS, state, PARAMS)
    assert seen == [0, 1, 2]
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    first, state = step(add_penalty_gradients(RULES, scale=schedule))
    assert_trees_equal(first, GRADS)
    second, _ = step(add_penalty_gradients(RULES, scale=schedule), state=state)
    assert_trees_equal(second, jax.tree.map(lambda g, e: g + 0.5 * (e - g), GRADS, EXPECTED), rtol=1e-5)


@pytest.mark.parametrize("value", [2, np.float64(2.0), jnp.asarray(2, jnp.int32), jnp.asarray(2.0, jnp.bfloat16)])
def test_schedules_of_any_number(value):
    updates, _ = step(add_penalty_gradients(RULES, scale=lambda count: value))
    assert_trees_equal(updates, jax.tree.map(lambda g, e: g + 2 * (e - g), GRADS, EXPECTED), rtol=1e-5)


def test_the_count_stops_at_its_largest():
    tx = add_penalty_gradients(RULES)
    largest = jnp.iinfo(jnp.int32).max
    _, state = step(tx, state=tx.init(PARAMS)._replace(count=jnp.asarray(largest, jnp.int32)))
    assert state.count == largest


def test_state_is_fixed_from_the_start():
    for track in (True, False):
        tx = add_penalty_gradients(RULES, track=track)
        before = tx.init(PARAMS)
        after = step(tx)[1]
        assert type(before) is jaxreg.PenaltyState
        assert before._fields == ("count", "penalty", "key")
        assert np.isnan(before.penalty)
        assert before.key is after.key is None
        assert (after.count.dtype, after.penalty.dtype) == (jnp.int32, jnp.float32)
        assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after)
        assert [leaf.weak_type for leaf in jax.tree.leaves((before, after))] == [False] * 4
        assert np.isnan(after.penalty) != track


def test_any_function_of_a_tree_serves():
    def both(params):
        return RULES(params) + 0.5 * jnp.sum(params["head"]["kernel"] ** 2)

    updates, state = step(add_penalty_gradients(both))
    expected = {**EXPECTED, "head": {**GRADS["head"], "kernel": GRADS["head"]["kernel"] + PARAMS["head"]["kernel"]}}
    assert_trees_equal(updates, expected)
    np.testing.assert_allclose(state.penalty, both(PARAMS), rtol=1e-6)


def test_a_function_that_returns_a_parameter_itself():
    params = {"a": jnp.asarray(2.0), "b": jnp.asarray(3.0)}
    updates, _ = step(add_penalty_gradients(lambda params: params["a"]), jax.tree.map(jnp.zeros_like, params), params)
    assert updates == {"a": 1.0, "b": 0.0}


def test_strengths_may_be_traced():
    def after(strength):
        updates, _ = add_penalty_gradients(Rules((r"kernel$", L2(strength)))).update(
            GRADS, add_penalty_gradients(RULES).init(PARAMS), PARAMS
        )
        return jnp.sum(updates["head"]["kernel"])

    np.testing.assert_allclose(jax.grad(after)(0.5), 2 * jnp.sum(PARAMS["head"]["kernel"]), rtol=1e-5)


@pytest.mark.parametrize("update_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_updates_keep_their_dtype(update_dtype, param_dtype):
    updates, state = step(add_penalty_gradients(RULES), tree(1, update_dtype), tree(0, param_dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(update_dtype)}
    assert state.penalty.dtype == jnp.float32
    kernel = np.asarray(tree(1, update_dtype)["hidden"]["kernel"], np.float32)
    expected = kernel + np.asarray(tree(0, param_dtype)["hidden"]["kernel"], np.float32)
    np.testing.assert_allclose(np.asarray(updates["hidden"]["kernel"], np.float32), expected, rtol=1e-2, atol=2e-2)


def test_float64():
    with jax.enable_x64(True):
        updates, state = step(add_penalty_gradients(RULES), tree(1, jnp.float64), tree(0, jnp.float64))
        assert updates["hidden"]["kernel"].dtype == jnp.float64
        assert state.penalty.dtype == jnp.float32


def test_nothing_retraces():
    count = []

    def counted(params):
        count.append(1)
        return RULES(params)

    tx = add_penalty_gradients(counted, scale=optax.linear_schedule(0.0, 1.0, 5))
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    for seed in range(5):
        _, state = update(tree(seed), state, PARAMS)
    assert len(count) == 1
    assert update._cache_size() == 1


# What passes through.


def test_holes_and_other_leaves_pass_through():
    params = {
        "kernel": jnp.ones(2),
        "frozen": jnp.ones(2),
        "masked": optax.MaskedNode(),
        "step": jnp.asarray(3),
        "f": jnp.tanh,
    }
    grads = {
        "kernel": jnp.zeros(2),
        "frozen": None,
        "masked": optax.MaskedNode(),
        "step": np.zeros((), jax.dtypes.float0),
        "f": None,
    }
    tx = add_penalty_gradients(Rules((r"kernel|frozen", L2(0.5))))
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates.pop("kernel"), np.ones(2))
    assert updates == {key: grads[key] for key in ("frozen", "masked", "step", "f")}
    assert state.penalty == 2.0


def test_equinox():
    model = eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(0))
    tx = add_penalty_gradients(Rules((r"weight$", L2(0.5))))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    grads = eqx.filter_grad(lambda model: jnp.sum(model(jnp.ones(2))))(model)
    for params in (model, eqx.filter(model, eqx.is_inexact_array)):
        updates, _ = tx.update(grads, state, params)
        np.testing.assert_allclose(updates.layers[0].weight, grads.layers[0].weight + model.layers[0].weight, rtol=1e-6)
        np.testing.assert_array_equal(updates.layers[0].bias, grads.layers[0].bias)
        assert eqx.apply_updates(model, updates).layers[0].weight.shape == (4, 2)


def test_boxed_params():
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), PARAMS)
    grads = jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), GRADS)
    updates, _ = step(add_penalty_gradients(RULES), grads, boxed)
    assert isinstance(updates["hidden"]["kernel"], nn.Partitioned)
    assert_trees_equal(nn.meta.unbox(updates), EXPECTED)


# Placement.


def test_coupled_is_the_gradient_of_the_sum():
    tx = optax.chain(add_penalty_gradients(RULES), optax.adam(0.1))
    updates, _ = step(tx)
    expected, _ = step(optax.adam(0.1), jax.grad(lambda p: RULES(p) + _linear(p))(PARAMS))
    assert_trees_equal(updates, expected, rtol=1e-5)


def _linear(params):
    """A loss whose gradient is GRADS."""
    return sum(jnp.vdot(p, g) for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(GRADS), strict=True))


@pytest.mark.parametrize("decay", [1e-4, 0.1, 0.037])
@pytest.mark.parametrize("track", [True, False])
def test_decoupled_l2_is_adamw_to_the_bit(decay, track):
    params, grads = tree(0, size=3000), tree(1, size=3000)
    ours = optax.chain(
        optax.scale_by_adam(),
        add_penalty_gradients(Rules((r"", L2(decay / 2))), track=track),
        optax.scale_by_learning_rate(1e-2),
    )
    theirs = optax.adamw(1e-2, weight_decay=decay)
    states = ours.init(params), theirs.init(params)
    mine, other = params, params
    for _ in range(3):
        updates, state = step(ours, grads, mine, states[0])
        expected, expected_state = step(theirs, grads, other, states[1])
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        states = state, expected_state
        mine, other = optax.apply_updates(mine, updates), optax.apply_updates(other, expected)


def test_decoupled_l2_is_adamw_to_one_rounding_in_bfloat16():
    params, grads = tree(0, jnp.bfloat16, 3000), tree(1, jnp.bfloat16, 3000)
    ours = optax.chain(optax.scale_by_adam(), add_penalty_gradients(Rules((r"", L2(0.05)))), optax.scale(-1.0))
    theirs = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-1.0))
    for got, expected, p in zip(
        *(jax.tree.leaves(t) for t in (step(ours, grads, params)[0], step(theirs, grads, params)[0], params)),
        strict=True,
    ):
        got, expected, p = (np.asarray(a, np.float32) for a in (got, expected, p))
        # One rounding of the added term, and one of the sum, which is of the order of 1 after Adam.
        ulp = 2.0**-8
        assert np.all(np.abs(got - expected) <= ulp * np.abs(0.1 * p) + 2 * ulp * np.maximum(np.abs(expected), 2.0**-8))


# Wrappers.


def test_chain_with_clipping_before():
    tx = optax.chain(optax.clip_by_global_norm(1e-3), add_penalty_gradients(RULES))
    clipped, _ = step(optax.clip_by_global_norm(1e-3))
    updates, state = step(tx)
    assert_trees_equal(updates, jax.tree.map(lambda c, e, g: c + (e - g), clipped, EXPECTED, GRADS), rtol=1e-4)
    np.testing.assert_allclose(optax.tree.get(state, "penalty"), RULES(PARAMS), rtol=1e-6)


def test_two_in_one_chain_are_found_apart():
    biases = Rules((r"bias$", L1(0.25)))
    kernels = Rules((r"kernel$", L2(0.5)))
    tx = optax.chain(add_penalty_gradients(biases, scale=2.0), add_penalty_gradients(kernels))
    _, state = step(tx)
    found = [value for _, value in optax.tree.get_all_with_path(state, "penalty")]
    np.testing.assert_allclose(found, [biases(PARAMS), kernels(PARAMS)], rtol=1e-6)
    with pytest.raises(KeyError):
        optax.tree.get(state, "penalty")


def test_masked():
    mask = {"hidden": {"kernel": True, "bias": True}, "head": {"kernel": False, "bias": False}}
    tx = optax.masked(add_penalty_gradients(RULES), mask)
    updates, _ = step(tx)
    assert_trees_equal(updates, EXPECTED)
    prefix = optax.masked(add_penalty_gradients(RULES), {"hidden": True, "head": False})
    assert_trees_equal(step(prefix)[0], EXPECTED)
    unknown = optax.masked(add_penalty_gradients(Rules((r"kernle$", L2()))), mask)
    with pytest.raises(ValueError, match="met no parameter"):
        step(unknown)


def test_partition():
    groups = {"hidden": {"kernel": "a", "bias": "a"}, "head": {"kernel": "b", "bias": "b"}}
    tx = optax.partition({"a": add_penalty_gradients(RULES), "b": optax.set_to_zero()}, groups)
    updates, _ = step(tx)
    assert_trees_equal(updates, {**EXPECTED, "head": jax.tree.map(jnp.zeros_like, GRADS["head"])})


def test_multi_steps():
    tx = optax.MultiSteps(optax.chain(add_penalty_gradients(RULES), optax.sgd(1.0)), every_k_schedule=2)
    state = tx.init(PARAMS)
    first, state = jax.jit(tx.update)(GRADS, state, PARAMS)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first))
    second, _ = jax.jit(tx.update)(GRADS, state, PARAMS)
    assert_trees_equal(second, jax.tree.map(jnp.negative, EXPECTED))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_apply_if_finite(dtype):
    params, grads = tree(0, dtype), tree(1, dtype)
    tx = optax.apply_if_finite(add_penalty_gradients(RULES), max_consecutive_errors=3)
    updates, state = step(tx, grads, params)
    expected, _ = step(add_penalty_gradients(RULES), grads, params)
    assert_trees_equal(updates, expected)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    refused, state = step(tx, bad, params, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(refused))
    assert state.inner_state.count == 1


def test_conditionally_transform():
    tx = optax.conditionally_transform(add_penalty_gradients(RULES), lambda step: step > 0)
    first, state = step(tx)
    assert_trees_equal(first, GRADS)
    assert_trees_equal(step(tx, state=state)[0], EXPECTED)


def test_inject_hyperparams():
    make = optax.inject_hyperparams(add_penalty_gradients, static_args=("rules",))
    tx = make(rules=RULES, scale=optax.linear_schedule(0.0, 1.0, 1))
    first, state = step(tx)
    assert_trees_equal(first, GRADS)
    second, state = step(tx, state=state)
    assert_trees_equal(second, EXPECTED)
    assert float(state.hyperparams["scale"]) == 1.0
    constant = make(rules=RULES, scale=2.0)
    changed = constant.init(PARAMS)
    changed.hyperparams["scale"] = jnp.asarray(1.0)
    assert_trees_equal(step(constant, state=changed)[0], EXPECTED)


def test_map_params_meets_the_state():
    tx = optax.chain(add_penalty_gradients(RULES), optax.adam(0.1))
    state = tx.init(PARAMS)
    mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert_trees_equal(optax.tree.get(mapped, "mu"), jax.tree.map(jnp.ones_like, PARAMS))


def test_train_state():
    state = TrainState.create(
        apply_fn=None, params=PARAMS, tx=optax.chain(add_penalty_gradients(RULES), optax.sgd(1.0))
    )
    state = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))(state, GRADS)
    assert_trees_equal(state.params, jax.tree.map(lambda p, e: p - e, PARAMS, EXPECTED), rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(state.opt_state, "penalty"), RULES(PARAMS), rtol=1e-6)


def test_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    before = np.asarray(model.kernel[...])
    rules = Rules((r"kernel$", L2(0.5)))
    optimizer = nnx.Optimizer(model, optax.chain(add_penalty_gradients(rules), optax.sgd(0.1)), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2)))))(model)
        optimizer.update(model, grads)

    train(model, optimizer)
    np.testing.assert_allclose(model.kernel[...], before - 0.1 * (1.0 + before), rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_sharded_params_keep_their_sharding(axis_type):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    params = {"kernel": jnp.arange(48.0).reshape(16, 3)}
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding)
        updates, state = step(
            add_penalty_gradients(Rules((r"", L2(0.5)))), jax.tree.map(jnp.zeros_like, placed), placed
        )
    np.testing.assert_array_equal(updates["kernel"], params["kernel"])
    assert updates["kernel"].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(state.penalty, 0.5 * np.square(np.arange(48.0)).sum(), rtol=1e-6)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("d")], ids=["replicated", "sharded"])
def test_shard_map(spec):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = {"kernel": jnp.arange(48.0).reshape(16, 3)}
    tx = add_penalty_gradients(Rules((r"", L2(0.5))))
    update = jax.shard_map(
        lambda u, p, s: tx.update(u, s, p)[0],
        mesh=mesh,
        in_specs=(spec, spec, PartitionSpec()),
        out_specs=spec,
    )
    updates = jax.jit(update)(jax.tree.map(jnp.zeros_like, params), params, tx.init(params))
    np.testing.assert_array_equal(updates["kernel"], params["kernel"])


# Errors.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: add_penalty_gradients(RULES, scale=np.ones(2)),
            ValueError,
            r"`scale` must be a scalar, got float64\[2\]",
        ),
        (
            lambda: add_penalty_gradients(0.1),
            TypeError,
            "`rules` must be a function from a tree to a scalar, got float",
        ),
        (lambda: add_penalty_gradients(Rules), TypeError, "`rules` must be a function"),
        (lambda: add_penalty_gradients(RULES, track=1), TypeError, "`track` must be a bool, got int 1"),
        (lambda: add_penalty_gradients(RULES).update(GRADS, None), ValueError, "`params` must be given to `update`"),
        (
            lambda: step(add_penalty_gradients(RULES), jax.tree.map(lambda g: g[None], GRADS)),
            ValueError,
            r"`updates` must have the shapes of `params`, got float32\[1,2\] for float32\[2\] at `head/bias`",
        ),
        (
            lambda: step(add_penalty_gradients(RULES, scale=lambda count: jnp.ones(2))),
            ValueError,
            r"`scale` must be a scalar, got float32\[2\]",
        ),
        (
            lambda: step(add_penalty_gradients(RULES, scale=lambda c: 1j)),
            TypeError,
            "`scale` must be a real number, got complex",
        ),
        (
            lambda: step(add_penalty_gradients(RULES, scale=lambda c: None)),
            TypeError,
            "`scale` must be a real number, got None",
        ),
        (
            lambda: step(add_penalty_gradients(RULES), {"hidden": GRADS["hidden"]}),
            ValueError,
            "`updates` and `params` must have the same structure",
        ),
        (lambda: step(add_penalty_gradients(lambda p: p["head"]["bias"])), TypeError, "`rules` must return a scalar"),
        (lambda: step(add_penalty_gradients(Rules((r"kernle$", L2())))), ValueError, "met no parameter"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
