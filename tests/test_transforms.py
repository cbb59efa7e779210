"""`add_penalty_gradients` alone: its scale, any function as rules, and decoupled decay.

The wrappers of optax are in `test_wrappers.py`, and the numbers that it takes in `test_arguments.py`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
# The updates by hand. The gradient of RULES is 2 · 0.5 · w on the kernel and 0.25 · sign(w) on the bias.
EXPECTED = {
    "hidden": {
        "kernel": GRADS["hidden"]["kernel"] + PARAMS["hidden"]["kernel"],
        "bias": GRADS["hidden"]["bias"] + 0.25 * np.sign(PARAMS["hidden"]["bias"]),
    },
    "head": GRADS["head"],
}


def step(tx, grads=GRADS, params=PARAMS, state=None):
    return jax.jit(tx.update)(grads, tx.init(params) if state is None else state, params)


def test_adds_the_gradient():
    updates, state = step(add_penalty_gradients(RULES))
    chex.assert_trees_all_close(updates, EXPECTED)
    assert state.count == 1
    np.testing.assert_allclose(state.penalty, RULES(PARAMS), rtol=1e-6)


def test_updates_without_a_rule_are_not_copied():
    tx = add_penalty_gradients(RULES)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, EXPECTED)
    for name, update in updates["head"].items():
        assert update is GRADS["head"][name]


@pytest.mark.parametrize("scale", [0.0, 3.0, np.float32(3.0), jnp.asarray(3.0), lambda count: 3.0, lambda count: 0.0])
def test_scale(scale):
    updates, state = step(add_penalty_gradients(RULES, scale=scale))
    factor = scale(0) if callable(scale) else scale
    expected = jax.tree.map(lambda g, e: g + float(factor) * (e - g), GRADS, EXPECTED)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)
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
    assert state.count == 1
    chex.assert_trees_all_close(first, GRADS)
    second, _ = step(add_penalty_gradients(RULES, scale=schedule), state=state)
    chex.assert_trees_all_close(second, jax.tree.map(lambda g, e: g + 0.5 * (e - g), GRADS, EXPECTED), rtol=1e-5)


def test_a_schedule_retraces_nothing():
    chex.clear_trace_counter()
    rules = chex.assert_max_traces(RULES.__call__, n=1)
    tx = add_penalty_gradients(rules, scale=optax.linear_schedule(0.0, 1.0, 5))
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for seed in range(5):
        _, state = update(tree(seed), state, PARAMS)
    assert update._cache_size() == 1


def test_two_in_one_chain_have_their_own_scales():
    """The penalties in the states are not scaled."""
    biases, kernels = Rules((r"bias$", L1(0.25))), Rules((r"hidden/kernel$", L2(0.5)))
    tx = optax.chain(add_penalty_gradients(biases, scale=2.0), add_penalty_gradients(kernels, scale=0.0))
    updates, state = step(tx)
    expected = jax.tree.map(lambda g: g, GRADS)
    for name in ("hidden", "head"):
        expected[name]["bias"] = GRADS[name]["bias"] + 0.5 * jnp.sign(PARAMS[name]["bias"])
    chex.assert_trees_all_close(updates, expected)
    found = [value for _, value in optax.tree.get_all_with_path(state, "penalty")]
    np.testing.assert_allclose(found, [biases(PARAMS), kernels(PARAMS)], rtol=1e-6)


def test_any_function_of_a_tree_serves():
    def both(params):
        return RULES(params) + 0.5 * jnp.sum(params["head"]["kernel"] ** 2)

    updates, state = step(add_penalty_gradients(both))
    expected = {**EXPECTED, "head": {**GRADS["head"], "kernel": GRADS["head"]["kernel"] + PARAMS["head"]["kernel"]}}
    chex.assert_trees_all_close(updates, expected)
    np.testing.assert_allclose(state.penalty, both(PARAMS), rtol=1e-6)


def test_a_function_that_returns_a_parameter_itself():
    params = {"a": jnp.asarray(2.0), "b": jnp.asarray(3.0)}
    """The function has no equation, so that its result is read from its argument."""
    updates, _ = step(add_penalty_gradients(lambda params: params["a"]), jax.tree.map(jnp.zeros_like, params), params)
    assert updates == {"a": 1.0, "b": 0.0}


# Decoupled decay.


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
        chex.assert_trees_all_equal(updates, expected)
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
