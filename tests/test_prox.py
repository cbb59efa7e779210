"""The laws of a prox, over the table of cases."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
from cases import (
    FEW,
    FEW_NUMBERED,
    MADE,
    NUMBERED,
    PENALTIES,
    REGULARIZERS,
    VARIANTS,
    Case,
    Layout,
    Variant,
    groups,
)

import jaxreg
from jaxreg import penalties, prox
from jaxreg.prox import _groups as groups_module


def over(subjects, condition=lambda case: True):
    """Parametrizes over those whose row has a prox and fulfils a condition."""
    chosen = [s for s in subjects if s.case.prox is not None and condition(s.case)]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=str)


def sample(shape, seed=0, scale=1.5):
    return np.random.default_rng([seed, *shape]).normal(size=shape, scale=scale)


def objective(case, points, x, step):
    """½Σ(y − x)²/step + penalty(y) at many points y, in NumPy."""
    distances = ((points - x) ** 2 / step).reshape(len(points), -1)
    return distances.sum(axis=1) / 2 + case.reference(points)


@functools.cache
def noise(shape, count):
    """Changes at all distances, in some of the weights; and which weights are made zero instead."""
    rng = np.random.default_rng([count, *shape])
    reach = 10 ** rng.uniform(-7, 0.5, (count, *[1] * len(shape)))
    changes = reach * rng.normal(size=(count, *shape)) * (rng.uniform(size=(count, *shape)) < 0.7)
    return changes, rng.uniform(size=changes.shape) < 0.1, rng.uniform(size=(count // 10, *[1] * len(shape)))


def nearby(x, y, count):
    """Points about y at all distances, with and without zeros, and points between y, x and 0."""
    changes, zero, blends = noise(y.shape, count)
    points = np.where(zero, 0.0, y + changes)
    return np.concatenate([points, blends * y + (1 - blends) * x, blends * y, blends * x, np.zeros((1, *y.shape))])


@functools.cache
def compiled(case, static):
    """The prox, compiled once for each shape, whatever the numbers among the options are."""
    return jax.jit(lambda x, step, numbers: case.prox(x, step, **dict(static), **numbers))


def taken(case, x, step):
    """The prox of NumPy arrays in their dtypes."""
    return compiled(case.case, case.static)(jnp.asarray(x), jnp.asarray(step), case.numbers(np.shape(x)))


def exactly(case, x, step):
    """The prox in float64."""
    with jax.enable_x64(True):
        return np.asarray(taken(case, np.asarray(x, np.float64), np.asarray(step, np.float64)))


@functools.cache
def compiled_pull(case, static):
    return jax.jit(
        lambda x, step, numbers: jax.vjp(lambda x, step: case.prox(x, step, **dict(static), **numbers), x, step)
    )


def pulled_back(case, x, step):
    x = jnp.asarray(x, jnp.float32)
    return compiled_pull(case.case, case.static)(x, jnp.asarray(step, jnp.float32), case.numbers(x.shape))


def assert_beats(case, y, others, x, step):
    """The point y is as good as the best of the others."""
    best = objective(case, y[None], x, step)[0]
    assert best <= objective(case, others, x, step).min() + 1e-13 * max(1.0, abs(best))


# Law 1: the prox is the minimum of its objective, nonexpansive where the penalty is convex.


def assert_beats_points_nearby(case, count):
    for seed, step in enumerate(case.case.steps):
        x = sample(case.shape, seed)
        y = exactly(case, x, step)
        assert_beats(case, y, nearby(x, y, count), x, step)


@over(FEW)
def test_a_prox_beats_a_hundred_thousand_points(case):
    assert_beats_points_nearby(case, 100_000)


@over([v for v in VARIANTS if v not in FEW])
def test_a_prox_with_other_options_beats_many_points(case):
    assert_beats_points_nearby(case, 20_000)


@over([v for v in VARIANTS if v.layout is v.case.layouts[0]], lambda case: case.separable)
def test_a_prox_of_single_weights_is_the_minimum_on_a_grid(case):
    grid, x = np.linspace(-6.0, 6.0, 4801), np.linspace(-6.0, 6.0, 25)
    for step in case.case.steps:
        y = exactly(case, x, step)
        for i, value in enumerate(y):
            points = np.where(np.arange(25) == i, np.append(grid, value)[:, None], y)
            values = objective(case, points, x, step)
            assert values[-1] <= values.min() + 1e-12 * max(1.0, abs(values[-1]))
            # The minimum of the grid is next to it, unless two minima are equally good.
            near = abs(grid[values[:-1].argmin()] - value) <= 0.0026
            assert near or abs(values[:-1].min() - values[-1]) < 1e-3


def small(shape):
    """A shape of the same rank, of at most four weights."""
    sizes = [min(size, 2) for size in shape]
    return tuple(size if axis >= len(sizes) - 2 else 1 for axis, size in enumerate(sizes))


@over(FEW, lambda case: not case.separable)
def test_a_prox_of_few_weights_is_the_minimum_on_a_grid(case):
    """The grid lies around 0 and holds x."""
    shape = small(case.shape)
    axes = [np.linspace(-2.0, 2.0, 33)] * int(np.prod(shape))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *shape)
    penalized = case.reference(grid)
    x = np.random.default_rng(3).integers(-8, 9, shape) / 4
    distances = np.sum((grid - x).reshape(len(grid), -1) ** 2, axis=1) / 2
    for step in case.case.steps:
        y = exactly(case, x, step)
        values = distances / step + penalized
        assert objective(case, y[None], x, step)[0] <= values.min() + 1e-12
        assert np.max(np.abs(grid[values.argmin()] - y)) <= 0.13


@over(VARIANTS, lambda case: case.convex)
def test_a_prox_of_a_convex_penalty_is_nonexpansive(case):
    for seed, step in enumerate(case.case.steps * 10):
        a, b = sample(case.shape, seed), sample(case.shape, seed + 100)
        for c in (b, a + 1e-3 * b):
            moved = np.linalg.norm((exactly(case, a, step) - exactly(case, c, step)).ravel())
            assert moved <= np.linalg.norm((a - c).ravel()) * (1 + 1e-12)


@over([v for v in VARIANTS if v.layout is v.case.layouts[0]], lambda case: case.separable and not case.convex)
def test_a_prox_of_a_penalty_that_is_not_convex_expands_somewhere(case):
    x = np.linspace(0.0, 20.0, 100_001)
    assert np.max(np.diff(exactly(case, x, case.case.steps[0])) / np.diff(x)) > 1.01


@over(VARIANTS, lambda case: case.steps_for_each)
def test_a_step_for_each_weight(case):
    """Equal steps are one step; unequal ones minimize the objective in their metric."""
    for seed, step in enumerate(case.case.steps):
        x = sample(case.shape, seed)
        alike = exactly(case, x, np.full(case.shape, step))
        np.testing.assert_allclose(alike, exactly(case, x, step), rtol=1e-12, atol=1e-15)
        steps = step * np.exp(np.random.default_rng(seed).normal(size=case.shape))
        y = exactly(case, x, steps)
        assert_beats(case, y, nearby(x, y, 20_000), x, steps)


GROUPED = Variant(
    Case(penalties.group_lasso, prox.group_lasso, None, ref.group_norms), groups((30, 500), within=(0,)), {}
)


def test_group_steps_over_many_magnitudes():
    """Newton's method reaches the root of the norm for steps that are 16 orders apart."""
    rng = np.random.default_rng(0)
    x, steps = rng.normal(size=(30, 500)), 10 ** (rng.uniform(-8, 8, (30, 500)) + rng.uniform(0, 12, 500))
    y = exactly(GROUPED, x, steps)
    norm = np.linalg.norm(y, axis=0)
    alive = np.any(y != 0, axis=0)
    assert 10 < alive.sum() < 490
    np.testing.assert_array_equal(alive, np.linalg.norm(x / steps, axis=0) > 1)
    rest = ((y - x) / steps + y / np.where(alive, norm, 1.0))[:, alive]
    assert np.max(np.abs(rest) / np.abs(x / steps)[:, alive]) < 1e-11


def by_bisection(x, steps):
    """The prox of groups that are columns, and their norms after it, in NumPy: the root of the norm by bisection."""
    x, steps = np.float64(x), np.float64(steps)
    low, high = np.zeros(x.shape[1]), np.linalg.norm(x, axis=0)
    for _ in range(200):
        middle = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            above = np.nansum((x / (middle + steps)) ** 2, axis=0) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    with np.errstate(invalid="ignore"):
        return np.where(low > 0, x * (low / (low + steps)), 0.0), low


@jax.jit
def compiled_prox(x, steps):
    return prox.group_lasso(x, steps)


def rounded_prox(x, steps, compiled=compiled_prox):
    return np.float64(compiled(jnp.asarray(x, jnp.float32), jnp.asarray(steps, jnp.float32)))


def assert_is_by_bisection(x, steps, compiled=compiled_prox):
    """To a few roundings of the norm before the steps, by which a small norm after them is uncertain."""
    x, steps = np.float32(x), np.float32(steps)
    expected, after = by_bisection(x, steps)
    result, before = rounded_prox(x, steps, compiled), np.linalg.norm(np.float64(x), axis=0)
    alive = after > 1e-6 * before
    np.testing.assert_array_equal(np.any(result != 0, axis=0)[alive], True)
    np.testing.assert_array_equal(result[:, after == 0], 0.0)
    error = np.linalg.norm(result - expected, axis=0)[alive]
    assert np.all(error <= 1e-6 * before[alive]), np.max(error / before[alive])
    clear = after > 0.3 * before
    error = np.linalg.norm(result - expected, axis=0)[clear]
    assert np.all(error <= 4e-7 * after[clear]), np.max(error / after[clear])


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.02, 0.1, 0.5, 0.9, 2.0, 10.0])
def test_group_steps_against_bisection(size, spread):
    """Steps beside the norm from tiny to deadly, for all groups alike, and for some."""
    rng = np.random.default_rng([int(1e6 * size), int(2 * spread)])
    x = rng.normal(size=(64, 40))
    steps = size * np.linalg.norm(x, axis=0) * np.exp(spread * rng.normal(size=x.shape))
    for scale in (1.0, 1e-30, 1e30):
        assert_is_by_bisection(scale * x, scale * steps)
    assert_is_by_bisection(x, np.where(np.arange(40) % 2, steps, 1e-4 * steps))


def test_group_steps_of_groups_of_all_magnitudes_at_once():
    x = sample((64, 8), 3)
    scales = np.array([1e-32, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e36, 0.0])
    for size in (0.0, 1e-4, 0.1, 10.0):
        steps = size * np.exp(sample((64, 8), 4))
        assert_is_by_bisection(scales * x, scales * steps)
        alone = rounded_prox(x, size)
        for i, scale in enumerate(scales[:-1]):
            np.testing.assert_allclose(rounded_prox(scales * x, size * scale)[:, i] / scale, alone[:, i], rtol=2e-6)


def test_infinite_steps_of_groups():
    x, steps = sample((64, 3), 5), np.full((64, 3), 0.01)
    steps[:32, 1], steps[:, 2] = np.inf, np.inf
    assert_is_by_bisection(x, steps)
    assert np.all(np.abs(rounded_prox(x, steps)[:32, 1]) <= 1e-25)
    assert np.all(np.isfinite(pulled_back(GROUPED, x, steps)[0]))


def test_small_group_steps_and_dead_groups_need_no_iterations(monkeypatch):
    """Of the four passes only; where a group needs more, it is in the results that all are computed by Newton."""
    monkeypatch.setattr(groups_module, "_shrunk_by_newton", lambda x, step, axes: jnp.full_like(x, jnp.nan))
    fast = jax.jit(lambda x, steps: prox.group_lasso(x, steps))
    x, steps = sample((64, 40)), 1e-3 * np.exp(sample((64, 40), 1))
    few = [steps, 0 * steps, 1e6 * steps, np.where(np.arange(40) % 3 > 0, steps, 1e6 * steps)]
    for steps_of_few in few:
        assert_is_by_bisection(x, steps_of_few, fast)
        assert_is_by_bisection(np.where(np.arange(40) % 2, x, 0.0), steps_of_few, fast)
    for steps_of_some in (1e3 * steps, np.where(np.arange(40) == 7, 1e3 * steps, steps)):
        assert np.all(np.isnan(rounded_prox(x, steps_of_some, fast)))


# Regularizers: their prox is that of the penalty times its strength.


@jax.jit
def of_regularizer(regularizer, x, step):
    return regularizer.prox(x, step)


def has_prox(case):
    return case.prox is not None or case.composes_prox


with_prox = pytest.mark.parametrize("case", [m for m in REGULARIZERS if has_prox(m.case)], ids=str)


@with_prox
def test_a_prox_of_a_regularizer_beats_many_points(case):
    assert case.make().has_prox
    for seed, step in enumerate(case.case.steps):
        x = sample(case.shape, seed)
        with jax.enable_x64(True):
            y = np.asarray(of_regularizer(case.make(), jnp.asarray(x), jnp.asarray(step)))
        assert_beats(case, y, nearby(x, y, 5_000), x, step)


@pytest.mark.parametrize("case", [m for m in MADE if has_prox(m.case)], ids=str)
def test_a_prox_of_a_regularizer_takes_its_step_as_python_has_it(case):
    x = jnp.asarray(sample(case.shape), jnp.float32)
    step = case.case.steps[0]
    expected = of_regularizer(case.make(), x, step)
    chex.assert_trees_all_equal_shapes_and_dtypes(expected, x)
    chex.assert_trees_all_close(case.make().prox(x, step), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", [m for m in REGULARIZERS if m.case.metric_prox], ids=str)
def test_a_prox_of_a_regularizer_in_a_metric(case):
    assert case.make().has_metric_prox
    x, steps = sample(case.shape), 0.7 * np.exp(sample(case.shape, 1))
    with jax.enable_x64(True):
        y = np.asarray(of_regularizer(case.make(), jnp.asarray(x), jnp.asarray(steps)))
    assert_beats(case, y, nearby(x, y, 20_000), x, steps)


@pytest.mark.parametrize("case", [m for m in MADE if not m.case.metric_prox], ids=str)
def test_a_regularizer_without_a_metric_prox_says_so(case):
    assert not case.make().has_metric_prox


@pytest.mark.parametrize("case", [m for m in MADE if not has_prox(m.case)], ids=str)
def test_a_regularizer_without_a_prox_refuses_it(case):
    regularizer = case.make()
    assert not regularizer.has_prox
    assert not regularizer.has_metric_prox
    with pytest.raises(NotImplementedError, match=r"no prox in closed form.*add_penalty_gradients"):
        regularizer.prox(jnp.asarray(sample(case.shape), jnp.float32), 1.0)


# Laws 2 and 3: every way of calling, every dtype.


@over(FEW)
def test_transforms_agree(case):
    stack = jnp.stack([jnp.asarray(sample(case.shape, seed), jnp.float32) for seed in range(3)])
    step = case.case.steps[0]
    eager = jnp.stack([case.prox(x, step) for x in stack])
    one_by_one = jax.lax.scan(lambda carry, x: (carry, case.prox(x, step)), 0, stack)[1]
    steps = jnp.full((3,), step)
    for results in (
        jnp.stack([taken(case, x, step) for x in stack]),
        jax.vmap(lambda x: case.prox(x, step))(stack),
        jax.vmap(case.prox)(stack, steps),
        one_by_one,
    ):
        chex.assert_type(results, jnp.float32)
        chex.assert_trees_all_close(results, eager, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(results == 0, eager == 0)


@over(FEW)
def test_low_precision_is_float32_of_the_upcast_input(case):
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(sample(case.shape)).astype(dtype)
        result = taken(case, x, jnp.float32(case.case.steps[0]))
        expected = taken(case, x.astype(jnp.float32), jnp.float32(case.case.steps[0]))
        chex.assert_trees_all_equal_shapes_and_dtypes(result, x)
        chex.assert_trees_all_equal(result, expected.astype(dtype))


@over(NUMBERED)
def test_float32_is_near_float64(case):
    x = sample(case.shape).astype(np.float32)
    for step in case.case.steps:
        result = case.prox(jnp.asarray(x), step)
        np.testing.assert_allclose(result, exactly(case, x, step), rtol=1e-5, atol=2e-6)


# Law 4: derivatives almost everywhere, and no NaN at awkward points.


@functools.cache
def compiled_derivatives(case, static):
    @jax.jit
    def derivatives(x, v, step, dstep, numbers):
        def of(x, step):
            return case.prox(x, step, **dict(static), **numbers)

        forward = jax.jvp(lambda x: of(x, step), (x,), (v,))[1]
        weighted = jax.grad(lambda x, s: jnp.sum(jnp.cos(of(x, s))), argnums=(0, 1))(x, step)
        return forward, weighted, jax.jvp(lambda s: of(x, s), (step,), (dstep,))[1]

    return derivatives


def assert_derivatives(case, x, step, h=1e-6):
    """The derivatives along x and along the step, forward and in reverse, are those of finite differences."""
    v, dstep = sample(case.shape, 6), 0.1 * step
    with jax.enable_x64(True):
        given = (jnp.asarray(x), jnp.asarray(v), jnp.asarray(step), jnp.asarray(dstep))
        found = compiled_derivatives(case.case, case.static)(*given, case.numbers(case.shape))
        forward, (weighted, by_weights), by_step = jax.tree.map(np.asarray, found)
    sines = -np.sin(exactly(case, x, step))
    change = (exactly(case, x + h * v, step) - exactly(case, x - h * v, step)) / (2 * h)
    np.testing.assert_allclose(forward, change, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.sum(weighted * v), np.sum(sines * change), rtol=1e-5, atol=1e-7)
    change = (exactly(case, x, step + h * dstep) - exactly(case, x, step - h * dstep)) / (2 * h)
    np.testing.assert_allclose(by_step, change, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.sum(by_weights * dstep), np.sum(sines * change), rtol=1e-5, atol=1e-7)


@over(FEW_NUMBERED)
def test_derivatives(case):
    assert_derivatives(case, sample(case.shape, 5), np.float64(case.case.steps[0]))


@over(FEW_NUMBERED, lambda case: case.steps_for_each)
def test_derivatives_with_a_step_for_each_weight(case):
    assert_derivatives(case, sample(case.shape, 5), case.case.steps[0] * np.exp(0.5 * sample(case.shape, 7)))


AWKWARD = {
    "zeros": lambda x: 0 * x,
    "a zero row": lambda x: np.concatenate([0 * x[:1], x[1:]]) if x.ndim else 0 * x,
    "repeated rows": lambda x: np.repeat(x[:1], len(x), 0) if x.ndim > 1 else x,
    "no rows": lambda x: x[:0] if x.ndim else x,
    "1e-30": lambda x: 1e-30 * x,
    "1e30": lambda x: 1e30 * x,
    "1e37": lambda x: 1e37 * x,
    "a denormal row": lambda x: np.concatenate([1e-42 * x[:1], x[1:]]) if x.ndim else x,
}


@over(FEW)
def test_awkward_points_have_no_nan(case):
    for kind, make in AWKWARD.items():
        x = make(sample(case.shape)).astype(np.float32)
        for step in (0.0, 0.3, 1e30):
            y, pull = pulled_back(case, x, step)
            assert np.all(np.isfinite(y)), (kind, step)
            dx, dstep = pull(jnp.ones_like(y))
            assert np.all(np.isfinite(dx)), (kind, step)
            assert not np.isnan(dstep), (kind, step)


@over(NUMBERED, lambda case: case.separable and case.least_at_zero)
def test_no_weight_grows(case):
    for kind, make in AWKWARD.items():
        x = make(sample(case.shape)).astype(np.float32)
        for step in (0.0, 0.3, 1e30):
            assert np.all(np.abs(taken(case, x, np.float32(step))) <= np.abs(x) * 1.00001), (kind, step)


def scaled_step(case, scale):
    return scale ** (2 - case.case.degree) * case.case.steps[0]


@over(VARIANTS, lambda case: case.degree is not None)
def test_a_prox_of_a_homogeneous_penalty_scales(case):
    """A penalty of degree d has prox(c·x, c^(2−d)·step) = c·prox(x, step)."""
    x = sample(case.shape).astype(np.float32)
    expected = np.asarray(taken(case, x, np.float32(case.case.steps[0])), np.float64)
    # Powers of two change no digits. Those whose step is beyond float32 are left out.
    scales = [c for c in (2.0**-100, 2.0**-33, 2.0**33, 2.0**100) if 1e-37 < scaled_step(case, c) < 1e38]
    assert len(scales) >= 2
    for scale in scales:
        y = np.asarray(taken(case, x * np.float32(scale), np.float32(scaled_step(case, scale))), np.float64)
        np.testing.assert_allclose(y / scale, expected, rtol=1e-5, atol=2e-6, err_msg=f"{scale}")


@over(VARIANTS, lambda case: not case.computes_svd)
def test_a_step_of_zero_changes_nothing(case):
    x = jnp.asarray(sample(case.shape), jnp.float32)
    np.testing.assert_allclose(taken(case, x, np.float32(0.0)), x, rtol=1e-7)


@over(VARIANTS, lambda case: case.steps_for_each)
def test_steps_of_zero_change_nothing(case):
    x = jnp.asarray(sample(case.shape), jnp.float32)
    np.testing.assert_allclose(taken(case, x, jnp.zeros(case.shape)), x, rtol=1e-7)


@over(VARIANTS, lambda case: case.computes_svd)
def test_a_step_of_zero_changes_nothing_but_rounding(case):
    x = jnp.asarray(sample(case.shape), jnp.float32)
    np.testing.assert_allclose(taken(case, x, np.float32(0.0)), x, rtol=1e-5, atol=1e-6)


def spoiled(shape, place, value):
    x = np.array(sample(shape), np.float32)
    x[place] = value
    return x


def places(shape):
    """The first, a middle and the last entry."""
    every = list(np.ndindex(*shape))
    return {every[0], every[len(every) // 2], every[-1]}


@over(VARIANTS)
def test_nan_stays(case):
    step = np.float32(case.case.steps[0])
    assert np.all(np.isnan(taken(case, np.full(case.shape, np.nan, np.float32), step)))
    for place in places(case.shape):
        assert np.isnan(taken(case, spoiled(case.shape, place, np.nan), step)[place]), place
        assert np.isnan(case.prox(jnp.asarray(spoiled(case.shape, place, np.nan)), 0.0)[place]), place


@over(VARIANTS)
def test_infinity_stays(case):
    for place in places(case.shape):
        for value in (np.inf, -np.inf):
            for step in case.case.steps:
                y = taken(case, spoiled(case.shape, place, value), np.float32(step))
                assert not np.isfinite(y[place]), (place, step)


@over(VARIANTS, lambda case: case.separable)
def test_other_weights_do_not_see_what_is_spoiled(case):
    step = np.float32(case.case.steps[0])
    expected = np.asarray(taken(case, sample(case.shape).astype(np.float32), step))
    for place in places(case.shape):
        for value in (np.nan, np.inf):
            y = np.asarray(taken(case, spoiled(case.shape, place, value), step))
            others = np.ones(case.shape, bool)
            others[place] = False
            np.testing.assert_array_equal(y[others], expected[others])


@over(VARIANTS)
def test_a_step_that_is_nan_shows(case):
    assert np.all(np.isnan(taken(case, np.ones(case.shape, np.float32), np.float32(np.nan))))


@over(VARIANTS, lambda case: case.steps_for_each)
def test_steps_that_are_nan_show(case):
    for place in places(case.shape):
        steps = np.full(case.shape, 0.3, np.float32)
        steps[place] = np.nan
        assert np.isnan(taken(case, sample(case.shape).astype(np.float32), steps)[place])


def test_log_sum_of_small_weights_does_not_cancel():
    x = jnp.array([1e-8, 1e-5, 1e-3, 0.1])
    np.testing.assert_array_equal(prox.log_sum(x, 0.0, epsilon=1e3), x)
    np.testing.assert_allclose(prox.log_sum(x, 1e-6, epsilon=1e3), x, rtol=0.11)


def test_the_level_of_linf_at_the_largest_numbers():
    np.testing.assert_array_equal(prox.linf(jnp.array([1e38, 1.0]), 1.0), jnp.array([1e38, 1.0]))
    assert np.all(np.isnan(prox.linf(jnp.array([2.0, jnp.nan]), 1.0)))


# Where the exact answer fits in float32, though a product on the way to it does not.
LARGE = (
    (prox.mcp, {"lam": 1.0, "gamma": 1e30}, 3e25, 1.0, 3e25 - 1),
    (prox.mcp, {"lam": 1e25, "gamma": 3.0}, 3e25, 2.0, 3e25),
    (prox.mcp, {"lam": 1e25, "gamma": 2.0}, 3e25, 4.0, 3e25),
    (prox.mcp, {"lam": 1e25, "gamma": 2.0}, 1e25, 4.0, 0.0),
    (prox.scad, {"lam": 1e25, "a": 3.0}, 1e26, 1.0, 1e26),
    (prox.scad, {"lam": 1e25, "a": 3.0}, 1e26, 4.0, 1e26),
    (prox.scad, {"lam": 1e25, "a": 3.0}, 2.5e25, 1.0, 2e25),
    (prox.scad, {"lam": 1e25, "a": 3.0}, 3e25, 4.0, 0.0),
    (prox.huber, {"delta": 1e30}, 3e25, 1e30, 1.5e25),
    (prox.log_sum, {"epsilon": 1.0}, 1e30, 1.0, 1e30),
    (prox.log_sum, {"epsilon": 1e30}, 3e25, 1.0, 3e25),
    (prox.anchor, {"target": jnp.float32(1e38), "fisher": 1e38}, -1e38, 1e38, 1e38),
    (prox.anchor, {"target": jnp.float32(3e38), "fisher": 1.0}, -3e38, 1.0, 0.0),
    (prox.l2, {}, 3e38, 1e38, 1.5),
    (prox.l1_l2, {"l1": 0.0, "l2": 1e30}, 1e38, 1e30, 0.0),
    (prox.l1_l2, {"l1": 1e30, "l2": 0.0}, 1e38, 1e30, 0.0),
    (prox.l0, {}, 1e15, 1e38, 0.0),
    (prox.l0, {}, 1e25, 3e38, 1e25),
)


@pytest.mark.parametrize(("function", "options", "x", "step", "exact"), LARGE)
def test_a_prox_is_right_wherever_the_answer_fits(function, options, x, step, exact):
    for sign in (1.0, -1.0):
        turned = {name: sign * v if name == "target" else v for name, v in options.items()}
        result = function(jnp.float32(sign * x), step, **turned)
        np.testing.assert_allclose(result, np.float32(sign * exact), rtol=1e-5, atol=1e-6 * abs(x) * (exact == 0))


def test_steps_for_each_weight_of_tiny_groups():
    x, steps = jnp.full((2, 1), 1e-20), jnp.zeros((2, 1))
    for function in (prox.group_lasso, prox.sparse_group_lasso):
        np.testing.assert_allclose(jax.grad(lambda x, f=function: jnp.sum(f(x, steps)))(x), 1.0, rtol=1e-6)


@over(VARIANTS, lambda case: case.kills and not case.computes_svd)
def test_small_weights_become_exactly_zero(case):
    x = jnp.asarray(sample(case.shape, scale=1e-3), jnp.float32)
    np.testing.assert_array_equal(case.prox(x, 1.0), np.zeros(case.shape))


@over(VARIANTS, lambda case: case.kills and case.computes_svd)
def test_small_matrices_become_zero_to_rounding(case):
    x = jnp.asarray(sample(case.shape, scale=1e-3), jnp.float32)
    assert np.max(np.abs(case.prox(x, 1.0))) <= 1e-6


@over(VARIANTS, lambda case: not case.kills)
def test_small_weights_stay_where_nothing_is_killed(case):
    assert np.any(exactly(case, sample(case.shape, scale=1e-3), 1e-4) != 0)


# Maps of singular values, against NumPy.


def soft(values, step):
    return np.maximum(values - step, 0)


def cut(values, step):
    """All values cut to one level, so that what is cut off adds up to the step; by bisection."""
    low, high = 0.0, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if soft(values, middle).sum() > step else (low, middle)
    return np.minimum(values, high)


def mapped(function, x, step):
    u, values, vt = np.linalg.svd(x, full_matrices=False)
    return (u * function(values, step)) @ vt


SINGULAR_VALUES = {
    "equal": [1.0, 1.0, 1.0, 1.0],
    "equal to rounding": [1.0, 1.0 + 4e-16, 1.0 - 2e-16, 1.0 + 2e-16],
    "nearly equal": [1.0, 1.0 + 1e-9, 1.0 - 1e-9, 1.0],
    "equal in pairs": [2.0, 2.0, 0.5, 0.5],
    "of low rank": [2.0, 1.0, 0.0, 0.0],
    "apart": [2.0, 1.5, 0.7, 0.3],
}


def with_singular_values(values, seed):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    return (u * values) @ v.T


@pytest.mark.parametrize("kind", SINGULAR_VALUES)
@pytest.mark.parametrize(("function", "oracle"), [(prox.nuclear, soft), (prox.spectral, cut)])
def test_singular_maps_where_singular_values_meet(kind, function, oracle):
    for seed in range(3):
        x = with_singular_values(SINGULAR_VALUES[kind], seed)
        for step in (0.3, 0.8, 1.7):
            expected = mapped(oracle, x, step)
            with jax.enable_x64(True):
                np.testing.assert_allclose(function(jnp.asarray(x), step), expected, atol=1e-13)
            for scale in (1e-10, 1.0, 1e10):
                narrow = function(jnp.asarray(scale * x, jnp.float32), scale * step)
                np.testing.assert_allclose(np.float64(narrow) / scale, expected, atol=2e-6)


@pytest.mark.parametrize("kind", SINGULAR_VALUES)
def test_derivatives_of_singular_maps_where_singular_values_meet(kind):
    """At an orthogonal matrix all singular values are equal: the prox shrinks it, and its derivative is not NaN."""
    for seed in range(5):
        x, v, h = with_singular_values(SINGULAR_VALUES[kind], seed), sample((4, 4), seed + 1), 1e-6
        slope = (mapped(soft, x + h * v, 0.4) - mapped(soft, x - h * v, 0.4)) / (2 * h)
        with jax.enable_x64(True):
            given = (jnp.asarray(x),), (jnp.asarray(v),)
            found = jax.jvp(lambda x: prox.nuclear(x, 0.4), *given)[1]
            # The prox of the spectral norm has another slope in each direction there.
            assert np.all(np.isfinite(jax.jvp(lambda x: prox.spectral(x, 0.8), *given)[1]))
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6)
        found = jax.jvp(lambda x: prox.nuclear(x, 0.4), (jnp.float32(x),), (jnp.float32(v),))[1]
        np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-3)


def test_singular_values_become_zero():
    x = sample((6, 4))
    s = np.linalg.svd(x, compute_uv=False)
    with jax.enable_x64(True):
        low = np.linalg.svd(prox.nuclear(x, (s[1] + s[2]) / 2), compute_uv=False)
    np.testing.assert_allclose(low, np.maximum(s - (s[1] + s[2]) / 2, 0), atol=1e-14)


# The table, and what the laws leave out.


def test_the_house_has_a_prox_for_what_the_table_says():
    assert {case.prox.__name__ for case in PENALTIES if case.prox} == set(prox.__all__)


def test_the_reference_of_a_broken_prox_is_seen():
    """The laws can fail: a prox with a constant that is wrong loses to a point near it."""
    broken = Case(penalties.l2, prox.l2, None, ref.of_weights(lambda size: 0.5 * size**2))
    broken = Variant(broken, Layout((3, 4)), {})
    x = sample((3, 4))
    y = exactly(broken, x, 0.3)
    assert objective(broken, y[None], x, 0.3)[0] > objective(broken, nearby(x, y, 10_000), x, 0.3).min() + 1e-6
    with pytest.raises(AssertionError):
        test_a_prox_beats_a_hundred_thousand_points(broken)


def test_derivatives_reach_the_strength():
    """How the result moves with the strength of a rule, for strengths that are learned."""
    slope = jax.grad(lambda s: jnp.sum(jaxreg.L1(s).prox(jnp.array([2.0, -3.0, 0.1]), 0.5)))(0.4)
    assert slope == 0.0
    slope = jax.grad(lambda s: jnp.sum(jnp.abs(jaxreg.L1(s).prox(jnp.array([2.0, -3.0, 0.1]), 0.5))))(0.4)
    assert slope == -1.0
