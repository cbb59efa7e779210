"""Strengths that change: schedules in rules, `scale` in a running state, and cautious penalties."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references as ref
from cases import KEPT

import jaxreg
from jaxreg import L1, L1L2, L2, MCP, Anchor, GroupLasso, Huber, Regularizer, Rules, constraints

pytestmark = pytest.mark.standard_promotion

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.03]]), "bias": jnp.array([0.3, -0.1])}
GRADS = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.01]]), "bias": jnp.array([0.3, -0.1])}
RISING = optax.linear_schedule(0.0, 1.0, 4)
VALUES = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


class Cube(Regularizer):
    factor: float = 0.01

    def __call__(self, x):
        return self.factor * jnp.sum(jnp.abs(x) ** 3)


class Around(Regularizer):
    """A class of the user's own, with a function and regularizers inside."""

    inner: Regularizer
    function: object = None
    more: tuple = ()

    def __call__(self, x):
        return self.inner(x) + sum(each(x) for each in self.more)


def never(count):
    raise AssertionError("a function of the user's own is not a schedule")


SCHEDULED = {
    "L1": (L1(RISING), lambda s: L1(s)),
    "L2": (L2(l2=RISING), lambda s: L2(s)),
    "both of L1L2": (L1L2(RISING, lambda count: 2 * RISING(count)), lambda s: L1L2(s, 2 * s)),
    "one of L1L2": (L1L2(RISING, 0.3), lambda s: L1L2(s, 0.3)),
    "an option": (Huber(0.5, delta=lambda count: 0.1 + RISING(count)), lambda s: Huber(0.5, delta=0.1 + s)),
    "several options": (MCP(RISING, lam=1.2, gamma=lambda count: 2.0), lambda s: MCP(s, lam=1.2, gamma=2.0)),
    "groups": (GroupLasso(RISING), lambda s: GroupLasso(s)),
    "a multiple of a class": (RISING * Cube(0.5), lambda s: s * Cube(0.5)),
    "a multiple from the right": (Cube(0.5) * RISING, lambda s: s * Cube(0.5)),
    "a sum": (L1(RISING) + RISING * Cube(0.2) + L2(0.1), lambda s: L1(s) + s * Cube(0.2) + L2(0.1)),
    "a multiple of a sum": (2.0 * (L1(RISING) + L2(0.1)), lambda s: 2.0 * (L1(s) + L2(0.1))),
    "a multiple of a multiple": (RISING * (RISING * L2(0.5)), lambda s: s * (s * L2(0.5))),
    "inside a class": (Around(L1(RISING), never, (L2(RISING),)), lambda s: Around(L1(s), None, (L2(s),))),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_is_read_at_the_count(name):
    scheduled, at = SCHEDULED[name]
    x = PARAMS["kernel"]
    assert scheduled.has_schedule
    rules = Rules((r"kernel$", scheduled))
    for count, value in enumerate(VALUES):
        for given in (count, jnp.int32(count)):
            np.testing.assert_allclose(scheduled.at(given)(x), at(value)(x), rtol=1e-6)
            np.testing.assert_allclose(rules.at(given)(PARAMS), at(value)(x), rtol=1e-6)
    traced = jax.jit(lambda count: rules.at(count)(PARAMS))
    np.testing.assert_allclose([traced(count) for count in range(6)], [at(v)(x) for v in VALUES], rtol=1e-6)
    assert not scheduled.at(0).has_schedule
    assert at(0.5).at(3) is not None
    if scheduled.has_prox:
        np.testing.assert_allclose(rules.at(2).prox(PARAMS, 0.3)["kernel"], at(0.5).prox(x, 0.3), rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULED)
def test_without_a_count_it_is_an_error_that_says_so(name):
    scheduled, _ = SCHEDULED[name]
    rules = Rules((r"kernel$", scheduled))
    calls = [
        lambda: scheduled(PARAMS["kernel"]),
        lambda: rules(PARAMS),
        lambda: jax.jit(rules)(PARAMS),
        lambda: rules.breakdown(PARAMS),
        lambda: jax.grad(lambda p: rules(p))(PARAMS),
    ]
    if scheduled.has_prox:
        calls += [lambda: rules.prox(PARAMS, 0.1), lambda: scheduled.prox(PARAMS["kernel"], 0.1)]
    for call in calls:
        with pytest.raises(TypeError, match=r"is a schedule.*rules.at\(count\)"):
            call()
    with pytest.raises(TypeError, match="at `kernel`, under rule 0"):
        rules(PARAMS)


def test_a_schedule_is_static_data():
    made = L1L2(RISING, 0.5)
    assert jax.tree.leaves(made) == [0.5]
    assert made == L1L2(RISING, 0.5)
    assert hash(made) == hash(L1L2(RISING, 0.5))
    assert "schedule" in repr(made)
    with pytest.raises(TypeError, match="schedule"):
        made.get_config()
    with pytest.raises(TypeError, match="schedule"):
        (RISING * Cube(0.5)).get_config()
    table = str(Rules((r"kernel$", made)).explain(PARAMS))
    assert "schedule" in table


def test_what_is_no_schedule():
    for bad in (lambda: 0.1, lambda a, b: 0.1):
        with pytest.raises(TypeError, match="`l1` must be a number, or a schedule that takes a count"):
            L1(bad)
    with pytest.raises(ValueError, match="`l1` must be finite and >= 0"):
        L1(lambda count: -1.0).at(3)
    with pytest.raises(ValueError, match="`l1` must be a scalar"):
        L1(lambda count: jnp.ones(2)).at(3)
    with pytest.raises(TypeError, match="`l1` must be a number"):
        L1(lambda count: "much").at(3)
    with pytest.raises(TypeError):
        L1(L2)
    with pytest.raises(ValueError, match=r"`fraction` must be finite and >= 0 and <= 1, got 1.5"):
        constraints.Sparsity(lambda count: 1.5).at(3)
    with pytest.raises(ValueError, match=r"rule 1 \('bias\$', L2\(l2=<lambda>\)\), at count 3: `l2` must be finite"):
        Rules((r"kernel$", L1(0.1)), (r"bias$", L2(lambda count: -1.0))).at(3)


def make_all(rules, **options):
    return {
        "coupled": optax.chain(jaxreg.add_penalty_gradients(rules, **options), optax.sgd(0.1)),
        "decoupled": jaxreg.decoupled(optax.adam(0.1), rules, 0.1, **options),
        "proximal": jaxreg.proximal(optax.sgd(0.1), rules, 0.1, **options),
        "proximal_sgd": jaxreg.proximal_sgd(0.1, rules, momentum=0.9, **options),
        "proximal_adam": jaxreg.proximal_adam(0.1, rules, **options),
        "proximal_adamw": jaxreg.proximal_adamw(0.1, rules, **options),
    }


def steps(tx, count=6):
    params, state, found = PARAMS, tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for _ in range(count):
        updates, state = update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


@pytest.mark.parametrize("name", make_all(Rules((r"kernel$", L1(0.1)))))
def test_transforms_read_schedules_at_their_count(name):
    """A schedule inside equals the same schedule as `scale`, and a scale equals stronger rules."""
    inside = make_all(Rules((r"kernel$", L1L2(RISING, 0.0)), (r"bias$", RISING * L2(0.5))))[name]
    outside = make_all(Rules((r"kernel$", L1L2(1.0, 0.0)), (r"bias$", L2(0.5))), scale=RISING)[name]
    chex.assert_trees_all_close(steps(inside), steps(outside), rtol=1e-5, atol=1e-6)
    scaled = make_all(Rules((r"kernel$", L1(0.2)), (r"bias$", L2(0.5))), scale=3.0)[name]
    stronger = make_all(3.0 * Rules((r"kernel$", L1(0.2)), (r"bias$", L2(0.5))))[name]
    chex.assert_trees_all_close(steps(scaled), steps(stronger), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", make_all(Rules((r"kernel$", L1(0.1)))))
def test_the_tracked_penalty_is_that_of_the_schedule_and_not_of_the_scale(name):
    tx = make_all(Rules((r"kernel$", L1(RISING))), scale=7.0)[name]
    params, state = PARAMS, tx.init(PARAMS)
    for value in VALUES:
        expected = value * ref.of_weights(lambda size: size)(np.asarray(params["kernel"], np.float64)[None])[0]
        updates, state = tx.update(GRADS, state, params)
        np.testing.assert_allclose(optax.tree.get(state, "penalty"), expected, rtol=1e-5)
        params = optax.apply_updates(params, updates)


def test_a_scale_does_not_weaken_a_constraint():
    rules = Rules((r"kernel$", constraints.MaxNorm(0.5)), (r"bias$", L1(10.0) + constraints.Box(0.1, 0.2)))
    tx = jaxreg.proximal_sgd(0.1, rules, scale=0.0)
    last = steps(tx)[-1]
    assert np.linalg.norm(last["kernel"], axis=0).max() <= 0.5 * (1 + 1e-6)
    assert ((last["bias"] >= 0.1) & (last["bias"] <= 0.2)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: optax.inject_hyperparams(jaxreg.proximal_adam, static_args=("rules",))(
            learning_rate=0.1, **options
        ),
        lambda **options: optax.inject_hyperparams(jaxreg.proximal_sgd, static_args=("rules",))(
            learning_rate=0.1, **options
        ),
        lambda **options: optax.inject_hyperparams(jaxreg.add_penalty_gradients, static_args=("rules",))(**options),
        lambda **options: optax.inject_hyperparams(jaxreg.decoupled, static_args=("rules", "inner"))(
            inner=optax.sgd(0.1), learning_rate=0.1, **options
        ),
    ],
    ids=["proximal_adam", "proximal_sgd", "add_penalty_gradients", "decoupled"],
)
def test_a_scale_is_set_in_a_running_state_without_recompiling(make):
    tx = make(rules=Rules((r"kernel$", L1(0.3))), scale=1.0)
    traces = []

    @jax.jit
    def update(params, state):
        traces.append(None)
        return tx.update(GRADS, state, params)

    state = tx.init(PARAMS)
    found = {}
    for scale in (1.0, 0.0, 2.0):
        state = optax.tree.set(state, scale=jnp.asarray(scale, jnp.float32))
        updates, _ = update(PARAMS, state)
        found[scale] = updates["kernel"]
    assert len(traces) == 1
    for scale in (0.0, 2.0):
        fresh = make(rules=Rules((r"kernel$", L1(0.3))), scale=scale)
        expected, _ = fresh.update(GRADS, fresh.init(PARAMS), PARAMS)
        np.testing.assert_allclose(found[scale], expected["kernel"], rtol=1e-5, atol=1e-7)


def test_a_schedule_as_an_injected_scale():
    tx = optax.inject_hyperparams(jaxreg.proximal_sgd, static_args=("rules",))(
        learning_rate=0.1, rules=Rules((r"kernel$", L1(1.0))), scale=RISING
    )
    outside = jaxreg.proximal_sgd(0.1, Rules((r"kernel$", L1(RISING))))
    chex.assert_trees_all_close(steps(tx), steps(outside), rtol=1e-5, atol=1e-6)


# Constraints and memory with schedules.


def test_gradual_pruning():
    """The cubic schedule of Zhu and Gupta, by its formula, with exact counts at each step."""
    begin, end = 2, 12
    schedule = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=end - begin, transition_begin=begin)
    tx = jaxreg.proximal(optax.adam(0.01), Rules((r".*", constraints.Sparsity(schedule))))
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(20, 30)), jnp.float32)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for count in range(16):
        fraction = float(jax.jit(schedule)(jnp.int32(count)))
        np.testing.assert_allclose(
            fraction, 0.9 * (1 - (1 - np.clip((count - begin) / (end - begin), 0, 1)) ** 3), atol=1e-6
        )
        grads = {"w": jnp.asarray(rng.normal(size=(20, 30)), jnp.float32)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert int(np.sum(params["w"] == 0)) == round(fraction * 600)


@pytest.mark.parametrize("case", [case for case in KEPT if case.numbers], ids=str)
def test_every_number_of_a_constraint_may_be_a_schedule(case):
    layout = case.layouts[0]
    x = np.random.default_rng(0).normal(size=layout.shape).astype(np.float32)
    expected = case.make(**case.numbers, **layout.options)(x)
    for name, value in case.numbers.items():
        scheduled = case.make(**(dict(case.numbers) | {name: lambda count, v=value: v}), **layout.options)
        chex.assert_trees_all_close(scheduled.at(3)(x), expected, rtol=1e-6)
        with pytest.raises(TypeError, match=f"`{name}` of .* is a schedule"):
            scheduled(x)


def test_an_anchor_that_is_let_go():
    falling = optax.linear_schedule(1.0, 0.0, 2)
    tx = jaxreg.decoupled(optax.sgd(0.0), Rules((r"kernel$", Anchor(falling))), 0.5)
    state = tx.init(PARAMS)
    moved = jax.tree.map(lambda x: x + 1, PARAMS)
    for strength in (1.0, 0.5, 0.0):
        updates, state = tx.update(GRADS, state, moved)
        np.testing.assert_allclose(updates["kernel"], jnp.full((2, 2), -0.5 * strength), atol=1e-6)


# Cautious penalties.


def test_cautious_decay_is_that_of_the_paper():
    """AdamW, x ← x − η(u + λ·[u·x ≥ 0]·x), in NumPy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=50).astype(np.float64)
    params = {"kernel": jnp.asarray(x, jnp.float32)}
    rate, decay, m, v = 0.1, 0.2, 0.0, 0.0
    whole = jaxreg.decoupled(optax.adam(rate), Rules((r"kernel", L2(decay / 2))), rate, cautious=True)
    chained = optax.chain(
        optax.scale_by_adam(),
        jaxreg.add_penalty_gradients(Rules((r"kernel", L2(decay / 2))), cautious=True),
        optax.scale_by_learning_rate(rate),
    )
    states, founds = [whole.init(params), chained.init(params)], [params, params]
    for t in range(1, 8):
        gradient = rng.normal(size=50) * (rng.uniform(size=50) < 0.8)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - rate * (u + decay * (u * x >= 0) * x)
        for i, tx in enumerate((whole, chained)):
            updates, states[i] = tx.update({"kernel": jnp.asarray(gradient, jnp.float32)}, states[i], founds[i])
            founds[i] = optax.apply_updates(founds[i], updates)
            np.testing.assert_allclose(founds[i]["kernel"], x, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("regularizer", [L1(0.5), L2(0.5), GroupLasso(0.5, 0), Cube(0.3)], ids=str)
def test_cautious_penalties_of_any_kind(regularizer):
    rules = Rules((r"kernel$", regularizer))
    gradient = np.asarray(jax.grad(regularizer)(PARAMS["kernel"]))
    updates = np.asarray(GRADS["kernel"])
    tx = jaxreg.add_penalty_gradients(rules, cautious=True, scale=2.0)
    found, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(found["kernel"], updates + 2 * gradient * (updates * gradient >= 0), rtol=1e-6)
    np.testing.assert_array_equal(found["bias"], GRADS["bias"])
    around = jaxreg.decoupled(optax.sgd(0.1), rules, 0.1, cautious=True)
    found, _ = around.update(GRADS, around.init(PARAMS), PARAMS)
    expected = -0.1 * updates - 0.1 * gradient * (updates * gradient >= 0)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)


def test_awkward_points_of_caution():
    """A weight whose update is 0 takes the penalty, tiny ones are not lost, and NaN shows."""
    rules = Rules((r"kernel$", L1(0.5)))
    tx = jaxreg.add_penalty_gradients(rules, cautious=True)
    params = {"kernel": jnp.array([1.0, 1.0, 1.0, jnp.nan, 1.0, 0.0])}
    updates = {"kernel": jnp.array([0.0, 1e-30, -1e-30, 1.0, jnp.nan, 1.0])}
    found, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_allclose(found["kernel"], [0.5, 0.5, -1e-30, np.nan, np.nan, 1.0], rtol=1e-6)
    with pytest.raises(TypeError, match="`cautious` must be a bool"):
        jaxreg.add_penalty_gradients(rules, cautious=1)
    with pytest.raises(TypeError, match="`cautious` must be a bool"):
        jaxreg.decoupled(optax.sgd(0.1), rules, 0.1, cautious="yes")
    complex_tx = jaxreg.add_penalty_gradients(lambda p: jnp.sum(jnp.abs(p["w"])), cautious=True)
    weights = {"w": jnp.ones(2, jnp.complex64)}
    with pytest.raises(TypeError, match="`cautious` is for real parameters"):
        complex_tx.update(weights, complex_tx.init(weights), weights)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_caution_in_low_precision(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    grads = jax.tree.map(lambda x: x.astype(dtype), GRADS)
    tx = jaxreg.add_penalty_gradients(Rules((r"kernel$", L1(0.5))), cautious=True)
    found, _ = tx.update(grads, tx.init(params), params)
    agree = np.sign(PARAMS["kernel"]) * np.sign(GRADS["kernel"]) >= 0
    expected = np.asarray(GRADS["kernel"]) + 0.5 * np.sign(PARAMS["kernel"]) * agree
    assert found["kernel"].dtype == dtype
    np.testing.assert_allclose(np.asarray(found["kernel"], np.float32), expected, rtol=0.01)


def test_counts_of_a_traced_fraction_are_exact():
    """As Python rounds the product of the same number in float64."""
    from jaxreg._selection import share_of

    rng = np.random.default_rng(0)
    fractions = np.concatenate([rng.uniform(size=300), [0.0, 0.5, 1.0, 0.25, 0.9, 0.7875, 1e-7]]).astype(np.float32)
    for count in (1, 2, 5, 7, 600, 4_095, 4_096, 4_097, 100_003, 2**22 + 1, 123_456_789):
        found = jax.jit(jax.vmap(lambda f, count=count: share_of(f, count)))(fractions)
        expected = [round(float(f) * count) for f in fractions]
        np.testing.assert_allclose(found, expected, atol=0 if count < 2**20 else 1)
