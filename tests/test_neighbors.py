"""Total variation: its prox beside an exact method of another kind, on long signals and at awkward ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg import penalties, prox


def by_dynamic_programming(y, step):
    """The prox in NumPy by Johnson's method: the derivative of the best cost of a prefix is made of lines.

    Knots are the places where the line changes, each with the change of its slope and offset.
    """
    n, knots = len(y), []
    low, high = np.zeros(n), np.zeros(n)
    first, last = [1.0, -y[0]], [1.0, -y[0]]  # the lines at the far left and at the far right
    for k in range(n - 1):
        slope, offset = first
        while knots and slope * knots[0][0] + offset < -step:
            _, s, o = knots.pop(0)
            slope, offset = slope + s, offset + o
        low[k] = (-step - offset) / slope
        left = (low[k], slope, offset + step)
        slope, offset = last
        while knots and slope * knots[-1][0] + offset > step:
            _, s, o = knots.pop()
            slope, offset = slope - s, offset - o
        high[k] = (step - offset) / slope
        right = (high[k], -slope, step - offset)
        knots = [left, *knots, right]
        first, last = [1.0, -step - y[k + 1]], [1.0, step - y[k + 1]]
    slope, offset = first
    while knots and slope * knots[0][0] + offset < 0:
        _, s, o = knots.pop(0)
        slope, offset = slope + s, offset + o
    found = np.zeros(n)
    found[-1] = -offset / slope
    for k in range(n - 2, -1, -1):
        found[k] = np.clip(found[k + 1], low[k], high[k])
    return found


def signals(n):
    rng = np.random.default_rng(n)
    steps = np.repeat(rng.normal(size=n // 7 + 1), 7)[:n]
    return {
        "noise": rng.normal(size=n),
        "a walk": np.cumsum(rng.normal(size=n)) / np.sqrt(n),
        "steps": steps,
        "noisy steps": steps + 0.1 * rng.normal(size=n),
        "a line": np.linspace(-1, 1, n),
        "few levels": rng.integers(-2, 3, n).astype(float),
        "magnitudes": 2.0 ** rng.integers(-20, 5, n),
        "a spike": np.where(np.arange(n) == n // 2, 50.0, 0.0),
        "alternating": (-1.0) ** np.arange(n),
        "zeros": np.zeros(n),
    }


STEPS = (0.0, 1e-6, 0.01, 0.3, 1.0, 7.0, 1e3, 1e30)
compiled = jax.jit(prox.total_variation)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 50, 1500])
def test_the_prox_is_that_of_dynamic_programming(n):
    given = signals(n)
    for step in STEPS:
        with jax.enable_x64(True):
            found = np.asarray(compiled(jnp.asarray(np.stack(list(given.values()))), jnp.asarray(step)))
        rounded = np.asarray(compiled(jnp.asarray(np.stack(list(given.values())), jnp.float32), jnp.float32(step)))
        for (name, y), one, in_float32 in zip(given.items(), found, rounded, strict=True):
            size = np.max(np.abs(y)) + 1e-30
            expected = by_dynamic_programming(y, step) if step < 1e6 else np.full(n, np.mean(y))
            np.testing.assert_allclose(one, expected, atol=1e-12 * size, err_msg=f"{name}, {step}")
            expected = by_dynamic_programming(np.float64(np.float32(y)), np.float64(np.float32(min(step, 1e6))))
            np.testing.assert_allclose(in_float32, expected, atol=4e-6 * size, err_msg=f"{name}, {step}")


def test_parts_are_constant_to_the_bit():
    y = signals(1500)["noise"].astype(np.float32)
    found = np.asarray(compiled(jnp.asarray(y), jnp.float32(2.0)))
    with jax.enable_x64(True):
        exact = np.asarray(compiled(jnp.asarray(np.float64(y)), jnp.asarray(2.0)))
    np.testing.assert_array_equal(np.diff(found) == 0, np.diff(exact) == 0)
    assert 10 < np.sum(np.diff(found) != 0) < 300


@pytest.mark.parametrize("step", [0.01, 0.3, 2.0])
def test_the_derivative_of_long_signals_is_that_of_finite_differences(step):
    y, h = signals(400)["noisy steps"], 1e-7
    dy = np.random.default_rng(1).normal(size=400)
    with jax.enable_x64(True):
        given = jnp.asarray(y), jnp.asarray(step)
        _, along = jax.jvp(compiled, given, (jnp.asarray(dy), jnp.asarray(0.5)))
        _, pull = jax.vjp(compiled, *given)
        back, by_step = pull(jnp.asarray(dy))
    ahead, behind = (by_dynamic_programming(y + s * h * dy, step + s * h / 2) for s in (1, -1))
    change = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(along, change, atol=1e-6)
    # The projection on signals that are constant on parts is symmetric.
    np.testing.assert_allclose(np.vdot(back, dy) + 0.5 * float(by_step), np.vdot(along, dy), rtol=1e-9)


def test_a_step_of_zero_is_the_identity_also_among_equal_neighbors():
    y = jnp.array([0.1, 0.1, 0.1, 2.0, 2.0])
    np.testing.assert_array_equal(prox.total_variation(y, 0.0), y)
    np.testing.assert_array_equal(jax.jacfwd(lambda y: prox.total_variation(y, 0.0))(y), np.eye(5))


def test_signals_that_are_not_finite_spoil_no_others():
    y = np.stack([signals(50)["noise"]] * 3).astype(np.float32)
    y[1, 7] = np.inf
    found = np.asarray(compiled(jnp.asarray(y), jnp.float32(0.3)))
    assert np.all(np.isnan(found[1]))
    np.testing.assert_array_equal(found[[0, 2]], np.asarray(compiled(jnp.asarray(y[[0, 2]]), jnp.float32(0.3))))


def test_one_signal_of_one_weight_has_no_variation_and_shows_what_is_not_finite():
    assert penalties.total_variation(jnp.ones((3, 1))) == 0
    for bad in (jnp.nan, jnp.inf):
        x = jnp.array([[1.0], [bad]])
        assert np.isnan(penalties.total_variation(x))
        assert np.isnan(jax.grad(penalties.total_variation)(x)[1, 0])
        assert np.isnan(prox.total_variation(x, 1.0)[1, 0])
