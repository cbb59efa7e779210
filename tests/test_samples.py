"""Penalties that are estimated from a random sample of rows, and the keys that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxreg
from jaxreg import penalties


def matrix(n, d):
    return np.random.default_rng([n, d]).normal(size=(n, d))


def test_a_sample_is_an_unbiased_estimate():
    x = jnp.asarray(matrix(40, 5), jnp.float32)
    exact = float(penalties.orthogonal(x))
    keys = jax.random.split(jax.random.key(0), 4000)
    estimates = np.asarray(jax.jit(jax.vmap(lambda key: penalties.orthogonal(x, sample=6, key=key)))(keys))
    assert estimates.std() > 1e-3
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(len(keys))
    gradients = jax.jit(jax.vmap(lambda key: jax.grad(lambda x: penalties.orthogonal(x, sample=6, key=key))(x)))(keys)
    error = np.abs(np.asarray(gradients).mean(0) - jax.grad(penalties.orthogonal)(x))
    assert np.all(error < 5 * np.asarray(gradients).std(0) / np.sqrt(len(keys)) + 1e-6)


def test_a_sample_of_all_is_exact():
    x = jnp.asarray(matrix(12, 5), jnp.float32)
    assert penalties.orthogonal(x, sample=12, key=jax.random.key(0)) == penalties.orthogonal(x)


def test_a_sample_of_columns_and_of_each_matrix_of_a_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 30)), jnp.float32)
    value = penalties.orthogonal(x, mode="columns", batch_axis=0, sample=29, key=jax.random.key(0))
    np.testing.assert_allclose(value, penalties.orthogonal(x, mode="columns", batch_axis=0), rtol=0.05)
    assert value != penalties.orthogonal(x, mode="columns", batch_axis=0)


PARAMS = {
    "embed": {"embedding": jnp.asarray(matrix(50, 4), jnp.float32)},
    "other": {"embedding": jnp.asarray(matrix(50, 4), jnp.float32)},
    "head": {"kernel": jnp.asarray(matrix(4, 3), jnp.float32)},
}
SAMPLED = jaxreg.OrthogonalRegularizer(0.5, sample=8)
RULES = jaxreg.Rules((r"embedding$", SAMPLED), (r"kernel$", jaxreg.L2(0.1)))


def test_rules_hand_the_key_to_those_that_sample():
    key = jax.random.key(3)
    parts = RULES.breakdown(PARAMS, key=key)
    assert parts["embed/embedding"] != parts["other/embedding"]  # each with a key of its own
    assert RULES(PARAMS, key=key) == sum(parts.values())
    assert RULES(PARAMS, key=jax.random.key(4)) != RULES(PARAMS, key=key)
    assert parts["head/kernel"] == jaxreg.L2(0.1)(PARAMS["head"]["kernel"])
    assert str(RULES.explain(PARAMS, key=key))


def test_sums_and_multiples_of_what_samples():
    key = jax.random.key(0)
    x = PARAMS["embed"]["embedding"]
    both = 2.0 * (SAMPLED + jaxreg.L2(0.1))
    assert both.needs_key
    assert not jaxreg.L2(0.1).needs_key
    np.testing.assert_allclose(both(x, key=key), 2 * (SAMPLED(x, key=key) + jaxreg.L2(0.1)(x)), rtol=1e-6)


def test_the_transform_keeps_a_key_and_splits_it():
    tx = jaxreg.add_penalty_gradients(RULES, key=jax.random.key(0))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    before = tx.init(PARAMS)
    update = jax.jit(tx.update)
    first, middle = update(zeros, before, PARAMS)
    second, after = update(zeros, middle, PARAMS)
    assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after)
    assert len({tuple(np.asarray(state.key).tolist()) for state in (before, middle, after)}) == 3
    assert middle.penalty != after.penalty
    assert np.any(first["embed"]["embedding"] != second["embed"]["embedding"])
    again, _ = update(zeros, before, PARAMS)
    np.testing.assert_array_equal(first["embed"]["embedding"], again["embed"]["embedding"])
    assert update._cache_size() == 1


# Keys.

IMPLEMENTATIONS = ("threefry2x32", "rbg")
every_kind = pytest.mark.parametrize("kind", IMPLEMENTATIONS)


def drawn(params, *, key):
    """A penalty that is a number drawn from its key."""
    del params
    return jax.random.normal(key)


@every_kind
def test_the_key_that_is_used_is_not_the_one_that_is_kept(kind):
    """Nor is any of them used twice."""
    key = jax.random.key(0, impl=kind)
    tx = jaxreg.add_penalty_gradients(drawn, key=key)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    used, kept = [], [key]
    for _ in range(4):
        _, state = update(PARAMS, state, PARAMS)
        used.append(float(state.penalty))
        kept.append(jax.random.wrap_key_data(state.key, impl=kind))
    numbers = [*used, *(float(jax.random.normal(key)) for key in kept)]
    assert len(set(numbers)) == len(numbers)


@every_kind
def test_each_matrix_of_a_batch_samples_its_own_rows(kind):
    x = jnp.broadcast_to(jnp.asarray(matrix(40, 5), jnp.float32), (3, 40, 5))
    gradient = jax.grad(lambda x: penalties.orthogonal(x, batch_axis=0, sample=8, key=jax.random.key(0, impl=kind)))(x)
    chosen = [tuple(np.flatnonzero(np.any(np.asarray(part) != 0, axis=1))) for part in gradient]
    assert [len(rows) for rows in chosen] == [8, 8, 8]
    assert len(set(chosen)) == 3


@every_kind
def test_each_parameter_has_a_key_of_its_own(kind):
    same = jnp.asarray(matrix(40, 5), jnp.float32)
    params = {name: {"embedding": same} for name in ("a", "b", "c")}
    rules = jaxreg.Rules((r"embedding$", SAMPLED))
    key = jax.random.key(5, impl=kind)
    parts = rules.breakdown(params, key=key)
    assert len({float(part) for part in parts.values()}) == 3
    np.testing.assert_allclose(rules(params, key=key), sum(parts.values()), rtol=1e-6)
    tx = jaxreg.add_penalty_gradients(rules, key=key)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    chosen = {tuple(np.flatnonzero(np.any(np.asarray(u) != 0, axis=1))) for u in jax.tree.leaves(updates)}
    assert len(chosen) == 3


@every_kind
def test_keys_of_every_kind_work_everywhere(kind):
    key, x = jax.random.key(0, impl=kind), PARAMS["embed"]["embedding"]
    value = penalties.orthogonal(x, sample=8, key=key)
    np.testing.assert_allclose(SAMPLED(x, key=key), 0.5 * value, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(SAMPLED)(x, key=key), 0.5 * value, rtol=1e-6)
    assert np.isfinite(RULES(PARAMS, key=key))
    tx = optax.chain(jaxreg.add_penalty_gradients(RULES, key=key), optax.sgd(0.1))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert optax.tree.get(state, "key").shape == jax.random.key_data(key).shape


@every_kind
def test_the_key_of_the_user_survives_a_donated_state(kind):
    key = jax.random.key(0, impl=kind)
    tx = jaxreg.add_penalty_gradients(RULES, key=key)
    update = jax.jit(tx.update, donate_argnums=1)
    zeros, penalized = jax.tree.map(jnp.zeros_like, PARAMS), []
    for _ in range(2):
        _, state = update(zeros, tx.init(PARAMS), PARAMS)
        penalized.append(float(state.penalty))
    assert penalized[0] == penalized[1]
    assert not key.is_deleted()
    assert np.isfinite(RULES(PARAMS, key=key))


def test_keys_of_regularizers_without_a_sample_have_no_effect():
    rules = jaxreg.Rules((r"embedding$", jaxreg.OrthogonalRegularizer(0.5)), (r"kernel$", jaxreg.L2(0.1)))
    assert rules(PARAMS, key=jax.random.key(0)) == rules(PARAMS)


ERRORS = [
    (lambda: penalties.orthogonal(jnp.eye(3), sample=2), ValueError, "`key` must be given where `sample` is, got None"),
    (lambda: RULES(PARAMS), ValueError, "at `embed/embedding`, under rule 0 .*`key` must be given"),
    (lambda: RULES.explain(PARAMS), ValueError, "at `embed/embedding`, under rule 0 .*`key` must be given"),
    (lambda: penalties.orthogonal(jnp.eye(3), sample=1), ValueError, "`sample` must be at least 2, .* got 1"),
    (lambda: penalties.orthogonal(jnp.eye(3), sample=2.0), TypeError, "`sample` must be an int or None, got float 2.0"),
    (lambda: jaxreg.OrthogonalRegularizer(sample=True), TypeError, "`sample` must be an int or None, got bool"),
    (lambda: jaxreg.FramePotential(mode="row"), ValueError, "`mode` must be 'rows' or 'columns'"),
    (lambda: jaxreg.FramePotential(out_axis="0"), TypeError, "`out_axis` must be an int or a tuple"),
    (
        lambda: jaxreg.add_penalty_gradients(RULES, key=0),
        TypeError,
        "`key` must be a key from `jax.random.key`, got int 0",
    ),
    (
        lambda: jaxreg.add_penalty_gradients(RULES).update(
            PARAMS, jaxreg.add_penalty_gradients(RULES).init(PARAMS), PARAMS
        ),
        ValueError,
        "`key` must be given",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
