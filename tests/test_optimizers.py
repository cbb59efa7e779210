"""Transforms that are right by construction: they reach the solution of loss + penalty, or decay as AdamW does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxreg
from jaxreg import L1, L1L2, L2, GroupLasso, Rules

pytestmark = pytest.mark.standard_promotion

# The loss ½ Σ d (w − t)² has the minimum t. With l1 · Σ|w| + l2 · Σw² the minimum is soft(d t, l1)/(d + 2 l2).
TARGET = np.array([1.0, -2.0, 0.05, 0.5, -0.02, 3.0])
CURVATURE = np.array([1.0, 0.5, 1.0, 2.0, 1.0, 0.7])
LAM, RIDGE = 0.15, 0.2
SOLUTION = np.sign(TARGET) * np.maximum(CURVATURE * np.abs(TARGET) - LAM, 0) / (CURVATURE + 2 * RIDGE)
RULES = Rules((r"^w$", L1L2(LAM, RIDGE)))
STEPS = 6_000
SCHEDULE = optax.cosine_decay_schedule(0.05, STEPS)


def loss(params):
    return jnp.sum(CURVATURE * jnp.square(params["w"] - TARGET)) / 2


def trained(tx, steps=STEPS, loss=loss, start=None):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = {"w": jnp.zeros(len(TARGET))} if start is None else start
    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0])(start)


PROXIMAL = {
    "SGD": lambda: jaxreg.proximal_sgd(0.3, RULES),
    "SGD, schedule": lambda: jaxreg.proximal_sgd(optax.cosine_decay_schedule(0.3, STEPS), RULES),
    "SGD, momentum": lambda: jaxreg.proximal_sgd(0.05, RULES, momentum=0.9),
    "SGD, NumPy momentum": lambda: jaxreg.proximal_sgd(np.float32(0.05), RULES, momentum=np.float32(0.9)),
    "SGD, jax momentum": lambda: jaxreg.proximal_sgd(jnp.asarray(0.05), RULES, momentum=jnp.asarray(0.9)),
    "SGD, nesterov": lambda: jaxreg.proximal_sgd(0.05, RULES, momentum=0.9, nesterov=True),
    "SGD, momentum and schedule": lambda: jaxreg.proximal_sgd(SCHEDULE, RULES, momentum=0.5),
    "SGD, accumulator": lambda: jaxreg.proximal_sgd(0.05, RULES, momentum=0.9, accumulator_dtype=jnp.float64),
    "SGD, injected": lambda: _injected(jaxreg.proximal_sgd)(learning_rate=0.05, rules=RULES, momentum=0.9),
    "Adam": lambda: jaxreg.proximal_adam(SCHEDULE, RULES),
    "Adam, other numbers": lambda: jaxreg.proximal_adam(SCHEDULE, RULES, b1=0.5, b2=0.9, eps=1e-3, eps_root=1e-4),
    "Adam, nesterov": lambda: jaxreg.proximal_adam(SCHEDULE, RULES, nesterov=True),
    "Adam, mu_dtype": lambda: jaxreg.proximal_adam(SCHEDULE, RULES, mu_dtype=jnp.float32),
    "Adam, injected": lambda: _injected(jaxreg.proximal_adam)(learning_rate=SCHEDULE, rules=RULES, b2=0.99),
    "AdamW, no decay": lambda: jaxreg.proximal_adamw(SCHEDULE, RULES, weight_decay=0.0),
    "AdamW, no decay by a mask": lambda: jaxreg.proximal_adamw(SCHEDULE, RULES, weight_decay=0.5, mask={"w": False}),
}


def _injected(make):
    return optax.inject_hyperparams(make, static_args=("rules",))


@pytest.mark.parametrize("name", PROXIMAL)
def test_the_constructors_reach_the_solution_of_loss_plus_penalty(name):
    with jax.enable_x64(True):
        found = np.asarray(trained(PROXIMAL[name]())[0]["w"])
    np.testing.assert_array_equal(found == 0, SOLUTION == 0)
    np.testing.assert_allclose(found, SOLUTION, atol=1e-6)


def test_group_lasso_under_adam_reaches_its_solution():
    """For the loss ½‖w − t‖², the group lasso shortens each group by λ."""
    target = np.array([[3.0, 0.1], [4.0, 0.1]])
    tx = jaxreg.proximal_adam(SCHEDULE, Rules((r"^w$", GroupLasso(0.5))))
    with jax.enable_x64(True):
        found, _ = trained(tx, loss=lambda p: jnp.sum(jnp.square(p["w"] - target)) / 2, start={"w": jnp.ones((2, 2))})
    norms = np.linalg.norm(target, axis=0)
    np.testing.assert_allclose(found["w"], target * np.maximum(1 - 0.5 / norms, 0), atol=1e-6)
    assert not np.any(np.asarray(found["w"])[:, 1])


@pytest.mark.parametrize("make", [jaxreg.proximal_sgd, jaxreg.proximal_adam, jaxreg.proximal_adamw])
def test_an_injected_rate_may_be_changed_later(make):
    """The optimizer and its prox both see the new rate: the next step is that of an optimizer built with it."""
    params = {"w": jnp.asarray(TARGET, jnp.float32)}
    tx, other = (_injected(make)(learning_rate=rate, rules=RULES) for rate in (0.1, 0.02))
    state = tx.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.02)
    gradient = jax.grad(loss)(params)
    got, _ = jax.jit(tx.update)(gradient, state, params)
    expected, _ = jax.jit(other.update)(gradient, other.init(params), params)
    np.testing.assert_allclose(got["w"], expected["w"], rtol=1e-6)
    first, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    assert np.max(np.abs(first["w"])) > 2 * np.max(np.abs(got["w"]))


# Decoupled.


@pytest.mark.parametrize("rate", [1e-2, np.float32(1e-2), SCHEDULE], ids=["number", "NumPy", "schedule"])
@pytest.mark.parametrize("decay", [0.1, 1e-4])
def test_decoupled_l2_is_adamw(rate, decay):
    start = {"w": jnp.asarray(TARGET, jnp.float32)}
    ours = jaxreg.decoupled(optax.adam(rate), Rules((r"", L2(decay / 2))), rate)
    params, state = trained(ours, 50, start=start)
    expected, _ = trained(optax.adamw(rate, weight_decay=decay), 50, start=start)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=2e-6)
    assert state.count == 50


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "lion": optax.lion(0.1),
    "muon": optax.contrib.muon(0.1),
    "adafactor": optax.adafactor(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "lamb": optax.lamb(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1)),
}


@pytest.mark.parametrize("scale", [1.0, 0.3, lambda count: 0.5 + count])
@pytest.mark.parametrize("inner", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_decoupled_is_its_identity(inner, scale):
    """p' = p + u − η · scale · ∇R(p), around any optimizer, written out by hand."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.asarray(rng.normal(size=3), jnp.float32)}
    rules = Rules((r"w", L1L2(0.3, 0.2)))
    tx = jaxreg.decoupled(inner, rules, lambda count: 0.1 / (1 + count), scale=scale)
    state, inner_state = tx.init(params), inner.init(params)
    for step in range(3):
        gradient = jax.tree.map(lambda p: jnp.cos(3 * p), params)
        got, state = tx.update(gradient, state, params)
        expected, inner_state = inner.update(gradient, inner_state, params)
        factor = 0.1 / (1 + step) * (scale(step) if callable(scale) else scale)
        slope = 0.3 * np.sign(params["w"]) + 0.4 * np.asarray(params["w"])
        np.testing.assert_allclose(got["w"], expected["w"] - factor * slope, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(got["b"], expected["b"])
        np.testing.assert_allclose(state.penalty, rules(params), rtol=1e-6)
        params = optax.apply_updates(params, got)


def test_decoupled_solves_no_stated_problem_under_adam():
    """With L1L2 it rests at neither minimum, as its docstring says; under SGD the two placements are one."""
    with jax.enable_x64(True):
        under_adam = np.asarray(trained(jaxreg.decoupled(optax.adam(SCHEDULE), RULES, SCHEDULE))[0]["w"])
        ridge = Rules((r"", L2(RIDGE)))
        under_sgd = np.asarray(trained(jaxreg.decoupled(optax.sgd(0.1), ridge, 0.1))[0]["w"])
    assert np.max(np.abs(under_adam - SOLUTION)) > 0.1
    np.testing.assert_allclose(under_sgd, CURVATURE * TARGET / (CURVATURE + 2 * RIDGE), atol=1e-9)


def test_independent_decay_is_another_rate():
    """Divided by its peak, a schedule decays by the weight decay itself, as it would at a peak rate of 1."""
    schedule, params = optax.constant_schedule(1e-3), {"w": jnp.array([2.0])}
    tx = jaxreg.decoupled(optax.sgd(schedule), Rules((r"", L2(0.05))), lambda count: schedule(count) / 1e-3)
    updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.2], rtol=1e-6)


def test_after_a_whole_optimizer_weights_grow():
    """The figure of the docstring of `add_penalty_gradients`: the obvious place in a chain is the wrong one."""
    tx = optax.chain(optax.adam(1e-3), jaxreg.add_penalty_gradients(Rules((r"", L2(0.05)))))
    params, state = {"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)})
    for _ in range(100):
        updates, state = tx.update({"w": jnp.zeros(1)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], [1.1**100], rtol=1e-3)


ERRORS = [
    (lambda: jaxreg.decoupled("adam", RULES, 0.1), TypeError, "`inner` must be an optax transformation, .* got str"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), 0.1, 0.1), TypeError, "`rules` must be a function from a tree"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), RULES, None), TypeError, "`learning_rate` must be a number, got None"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), RULES, -1), ValueError, "`learning_rate` must be finite and >= 0"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), RULES, jnp.ones(2)), ValueError, "`learning_rate` must be a scalar"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), RULES, 0.1, scale=-1), ValueError, "`scale` must be finite and >= 0"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), RULES, 0.1, track=1), TypeError, "`track` must be a bool, got int 1"),
    (lambda: jaxreg.decoupled(optax.sgd(0.1), RULES, 0.1, key=0), TypeError, "`key` must be a key"),
    (lambda: jaxreg.proximal_sgd(0.1, RULES, momentum=1.0), ValueError, "`momentum` must be < 1, got 1.0"),
    (lambda: jaxreg.proximal_sgd(0.1, RULES, momentum=-0.1), ValueError, "`momentum` must be finite and >= 0"),
    (lambda: jaxreg.proximal_sgd(0.1, RULES, momentum="0.9"), TypeError, "`momentum` must be a number, got str"),
    (lambda: jaxreg.proximal_sgd(None, RULES), TypeError, "`learning_rate` must be a number, got None"),
    (lambda: jaxreg.proximal_adam("0.1", RULES), TypeError, "`learning_rate` must be a number, got str"),
    (lambda: jaxreg.proximal_adam(0.1, RULES, b2=1.0), ValueError, "`b2` must be < 1"),
    (lambda: jaxreg.proximal_adamw(0.1, Rules(("w", jaxreg.MCP()))), ValueError, "no prox in the metric of Adam"),
    (lambda: jaxreg.proximal_adam(0.1, L1(0.1)), TypeError, "`rules` must be jaxreg.Rules"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=[message for _, _, message in ERRORS])
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
