"""The laws of a prox, over the table of sparse cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sparse_cases import SPARSE, SparseCase, over_weights

import jaxreg
from jaxreg import prox

both = pytest.mark.parametrize("case", [(c, s) for c in SPARSE for s in c.shapes], ids=lambda cs: f"{cs[0]}-{cs[1]}")
each = pytest.mark.parametrize("case", SPARSE, ids=str)
for_each = pytest.mark.parametrize("case", [c for c in SPARSE if c.for_each], ids=str)


def sample(shape, seed=0, scale=1.5):
    return np.random.default_rng([seed, *shape]).normal(size=shape, scale=scale)


def objective(case, points, x, step):
    """½Σ(y − x)²/step + penalty(y) at many points y, in NumPy."""
    distances = ((points - x) ** 2 / step).reshape(len(points), -1)
    return distances.sum(axis=1) / 2 + case.reference(points)


def nearby(x, y, count, seed=0):
    """Points about y at all distances, with and without zeros, and points between y, x and 0."""
    rng = np.random.default_rng(seed)
    reach = 10 ** rng.uniform(-7, 0.5, (count, *[1] * y.ndim))
    points = y + reach * rng.normal(size=(count, *y.shape)) * (rng.uniform(size=(count, *y.shape)) < 0.7)
    points = np.where(rng.uniform(size=points.shape) < 0.1, 0.0, points)
    blends = rng.uniform(size=(count // 10, *[1] * y.ndim))
    return np.concatenate([points, blends * y + (1 - blends) * x, blends * y, blends * x, np.zeros((1, *y.shape))])


@functools.cache
def jitted(case):
    return jax.jit(case.prox)


@functools.cache
def pulled_back(case):
    return jax.jit(lambda x, step: jax.vjp(case.prox, x, step))


def taken(case, x, step):
    with jax.enable_x64(True):
        return np.asarray(jitted(case)(jnp.asarray(x), jnp.asarray(step)))


# Law 1: the prox is the minimum of its objective, nonexpansive where the penalty is convex.


@both
def test_a_prox_beats_a_hundred_thousand_points(case):
    case, shape = case
    for seed, step in enumerate(case.steps):
        x = sample(shape, seed)
        y = taken(case, x, step)
        best = objective(case, y[None], x, step)[0]
        others = objective(case, nearby(x, y, 100_000), x, step)
        assert best <= others.min() + 1e-13 * max(1.0, abs(best))


@each
def test_a_prox_is_the_minimum_on_a_grid(case):
    """Of single weights one by one; else of a few weights, on a grid around 0 that holds x."""
    for step in case.steps:
        if case.of_weights:
            grid = np.linspace(-6.0, 6.0, 4801)
            shape = (61,)
            x = np.linspace(-6.0, 6.0, 61)
            y = taken(case, x, step)
            for i, value in enumerate(y):
                points = np.where(np.arange(61) == i, np.append(grid, value)[:, None], y)
                values = objective(case, points, x, step)
                assert values[-1] <= values.min() + 1e-12
                # The minimum of the grid is next to it, unless two minima are equally good.
                near = abs(grid[values[:-1].argmin()] - value) <= 0.0026
                assert near or abs(values[:-1].min() - values[-1]) < 1e-3
            continue
        shape = (2, 2) if len(case.shapes[0]) == 2 else tuple(min(size, 2) for size in case.shapes[0])
        if np.prod(shape) > 4:
            shape = tuple(2 if axis >= len(shape) - 2 else 1 for axis in range(len(shape)))
        x = np.random.default_rng(3).integers(-8, 9, shape) / 4
        axes = [np.linspace(-2.0, 2.0, 33)] * int(np.prod(shape))
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *shape)
        y = taken(case, x, step)
        values = objective(case, grid, x, step)
        best = objective(case, y[None], x, step)[0]
        assert best <= values.min() + 1e-12
        assert np.max(np.abs(grid[values.argmin()] - y)) <= 0.13


@both
def test_a_prox_of_a_convex_penalty_is_nonexpansive(case):
    case, shape = case
    if not case.convex:  # and expands somewhere, where the penalty is not
        x = np.linspace(0.0, 6.0, 100_001)
        assert np.max(np.diff(taken(case, x, case.steps[0])) / np.diff(x)) > 1.01
        return
    for seed, step in enumerate(case.steps * 10):
        a, b = sample(shape, seed), sample(shape, seed + 100)
        for c in (b, a + 1e-3 * b):
            moved = np.linalg.norm((taken(case, a, step) - taken(case, c, step)).ravel())
            assert moved <= np.linalg.norm((a - c).ravel()) * (1 + 1e-12)


@for_each
def test_a_step_for_each_weight(case):
    """Equal steps are one step; unequal ones minimize the objective in their metric."""
    shape = case.shapes[-1]
    for seed, step in enumerate(case.steps):
        x = sample(shape, seed)
        np.testing.assert_allclose(taken(case, x, np.full(shape, step)), taken(case, x, step), rtol=1e-12, atol=1e-15)
        steps = step * np.exp(np.random.default_rng(seed).normal(size=shape))
        y = taken(case, x, steps)
        best = objective(case, y[None], x, steps)[0]
        assert best <= objective(case, nearby(x, y, 100_000), x, steps).min() + 1e-13 * max(1.0, abs(best))


def test_group_steps_over_many_magnitudes():
    """Newton's method reaches the root of the norm for steps that are 16 orders apart."""
    rng = np.random.default_rng(0)
    x, steps = rng.normal(size=(30, 500)), 10 ** (rng.uniform(-8, 8, (30, 500)) + rng.uniform(0, 12, 500))
    case = next(c for c in SPARSE if c.name == "group_lasso")
    y = taken(case, x, steps)
    norm = np.linalg.norm(y, axis=0)
    alive = np.any(y != 0, axis=0)
    assert 10 < alive.sum() < 490
    np.testing.assert_array_equal(alive, np.linalg.norm(x / steps, axis=0) > 1)
    rest = ((y - x) / steps + y / np.where(alive, norm, 1.0))[:, alive]
    assert np.max(np.abs(rest) / np.abs(x / steps)[:, alive]) < 1e-11


# Law 2 and 3: every way of calling, every dtype.


@both
def test_transforms_agree(case):
    case, shape = case
    stack = jnp.stack([jnp.asarray(sample(shape, seed), jnp.float32) for seed in range(3)])
    step = case.steps[0]
    eager = [case.prox(x, step) for x in stack]
    one_by_one = jax.lax.scan(lambda carry, x: (carry, case.prox(x, step)), 0, stack)[1]
    steps = jnp.full((3,), step)
    for results in (
        [jitted(case)(x, step) for x in stack],
        jax.vmap(lambda x: case.prox(x, step))(stack),
        jax.vmap(case.prox)(stack, steps),
        one_by_one,
    ):
        for result, expected in zip(results, eager, strict=True):
            assert result.dtype == expected.dtype == jnp.float32
            np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-6)
            np.testing.assert_array_equal(result == 0, expected == 0)


@both
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_low_precision_is_float32_of_the_upcast_input(case, dtype):
    case, shape = case
    x = jnp.asarray(sample(shape)).astype(dtype)
    result = jitted(case)(x, case.steps[0])
    assert result.dtype == dtype
    expected = jitted(case)(x.astype(jnp.float32), case.steps[0])
    np.testing.assert_array_equal(result, expected.astype(dtype))


@both
def test_float32_is_near_float64(case):
    case, shape = case
    x = sample(shape).astype(np.float32)
    for step in case.steps:
        result = case.prox(jnp.asarray(x), step)
        np.testing.assert_allclose(result, taken(case, x.astype(np.float64), step), rtol=1e-5, atol=2e-6)


# Law 4: derivatives almost everywhere, and no NaN at awkward points.


@both
def test_derivatives(case):
    case, shape = case
    step = case.steps[0]

    @jax.jit
    def derivatives(x, v, step):
        forward = jax.jvp(lambda x: case.prox(x, step), (x,), (v,))[1]
        weighted = jax.grad(lambda x: jnp.sum(jnp.cos(case.prox(x, step))))(x)
        return forward, weighted, jax.jvp(lambda s: case.prox(x, s), (step,), (jnp.ones_like(step),))[1]

    x, v, h = sample(shape, 5), sample(shape, 6), 1e-6
    with jax.enable_x64(True):
        forward, weighted, by_step = (np.asarray(d) for d in derivatives(x, v, jnp.asarray(step)))
    change = (taken(case, x + h * v, step) - taken(case, x - h * v, step)) / (2 * h)
    np.testing.assert_allclose(forward, change, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        np.sum(weighted * v), -np.sum(np.sin(taken(case, x, step)) * change), rtol=1e-5, atol=1e-7
    )
    change = (taken(case, x, step + h) - taken(case, x, step - h)) / (2 * h)
    np.testing.assert_allclose(by_step, change, rtol=1e-5, atol=1e-7)


@for_each
def test_derivatives_with_a_step_for_each_weight(case):
    shape = case.shapes[-1]
    x, v, h = sample(shape, 5), sample(shape, 6), 1e-6
    steps = case.steps[0] * np.exp(0.5 * sample(shape, 7))
    with jax.enable_x64(True):
        by_both = jax.jvp(case.prox, (jnp.asarray(x), jnp.asarray(steps)), (jnp.asarray(v), jnp.asarray(0.1 * steps)))[
            1
        ]
        gradient = jax.grad(lambda steps: jnp.sum(jnp.sin(case.prox(jnp.asarray(x), steps))))(jnp.asarray(steps))
    by_both, gradient = np.asarray(by_both), np.asarray(gradient)
    ahead, back = (taken(case, x + s * h * v, steps * (1 + s * 0.1 * h)) for s in (1, -1))
    np.testing.assert_allclose(by_both, (ahead - back) / (2 * h), rtol=1e-5, atol=1e-7)
    ahead, back = (np.sum(np.sin(taken(case, x, steps * (1 + s * h)))) for s in (1, -1))
    np.testing.assert_allclose(np.sum(gradient * steps), (ahead - back) / (2 * h), rtol=1e-5, atol=1e-7)


AWKWARD = {
    "zeros": lambda x: 0 * x,
    "a zero row": lambda x: np.concatenate([0 * x[:1], x[1:]]) if x.ndim else 0 * x,
    "repeated rows": lambda x: np.repeat(x[:1], 3, 0) if x.ndim > 1 else x,
    "no rows": lambda x: x[:0] if x.ndim else x,
    "1e-30": lambda x: 1e-30 * x,
    "1e30": lambda x: 1e30 * x,
    "1e37": lambda x: 1e37 * x,
    "a denormal row": lambda x: np.concatenate([1e-42 * x[:1], x[1:]]) if x.ndim else x,
}


@each
@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_points_have_no_nan(case, kind):
    x = jnp.asarray(AWKWARD[kind](sample(case.shapes[-1])), jnp.float32)
    if case.function == "anchor" and kind == "no rows":
        return
    for step in (0.0, 0.3, 1e30):
        y, pull = pulled_back(case)(x, jnp.float32(step))
        assert np.all(np.isfinite(y)), step
        if case.at_zero:
            assert np.all(np.abs(y) <= np.abs(x) * 1.00001) or not case.of_weights
        dx, dstep = pull(jnp.ones_like(y))
        assert np.all(np.isfinite(dx))
        assert not np.isnan(dstep)


@each
def test_a_step_of_zero_changes_nothing(case):
    for shape in case.shapes:
        x = jnp.asarray(sample(shape), jnp.float32)
        exact = case.function not in ("nuclear", "spectral")
        for step in (0.0, jnp.zeros(shape)) if case.for_each else (0.0,):
            np.testing.assert_allclose(case.prox(x, step), x, rtol=1e-7 if exact else 1e-5, atol=0 if exact else 1e-6)


@each
def test_nan_stays(case):
    x = jnp.full(case.shapes[-1], jnp.nan)
    assert np.all(np.isnan(case.prox(x, case.steps[0])))
    if case.of_weights:
        assert np.all(np.isnan(case.prox(jnp.ones(case.shapes[-1]), jnp.asarray(jnp.nan))))


def test_log_sum_of_small_weights_does_not_cancel():
    x = jnp.array([1e-8, 1e-5, 1e-3, 0.1])
    np.testing.assert_array_equal(prox.log_sum(x, 0.0, epsilon=1e3), x)
    np.testing.assert_allclose(prox.log_sum(x, 1e-6, epsilon=1e3), x, rtol=0.11)


def test_the_level_of_linf_at_the_largest_numbers():
    np.testing.assert_array_equal(prox.linf(jnp.array([1e38, 1.0]), 1.0), jnp.array([1e38, 1.0]))
    assert np.all(np.isnan(prox.linf(jnp.array([2.0, jnp.nan]), 1.0)))


def test_steps_for_each_weight_of_tiny_groups():
    x, steps = jnp.full((2, 1), 1e-20), jnp.zeros((2, 1))
    for function in (prox.group_lasso, prox.sparse_group_lasso):
        np.testing.assert_allclose(jax.grad(lambda x, f=function: jnp.sum(f(x, steps)))(x), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "case", [c for c in SPARSE if c.name not in ("prox of l2", "huber", "anchor", "linf")], ids=str
)
def test_small_weights_become_exactly_zero(case):
    if case.function == "spectral":
        return
    x = jnp.asarray(sample(case.shapes[-1], scale=1e-3), jnp.float32)
    zero = 1e-6 if case.function == "nuclear" else 0.0  # UΣVᵀ with Σ = 0
    assert np.max(np.abs(case.prox(x, 1.0))) <= zero


def test_singular_values_become_zero():
    x = sample((6, 4))
    s = np.linalg.svd(x, compute_uv=False)
    with jax.enable_x64(True):
        low = np.linalg.svd(prox.nuclear(x, (s[1] + s[2]) / 2), compute_uv=False)
    np.testing.assert_allclose(low, np.maximum(s - (s[1] + s[2]) / 2, 0), atol=1e-14)


def test_derivatives_of_singular_maps_where_singular_values_meet():
    """At an orthogonal matrix all singular values are equal: the prox shrinks it, and its derivative is not NaN."""
    q = np.linalg.qr(sample((4, 4)))[0]
    v, h = sample((4, 4), 1), 1e-6
    with jax.enable_x64(True):
        x, dx = jnp.asarray(q), jnp.asarray(v)
        slope = jax.jvp(lambda x: prox.nuclear(x, 0.3), (x,), (dx,))[1]
        ahead, back = (np.asarray(prox.nuclear(x + s * h * dx, 0.3)) for s in (1, -1))
        # The prox of the spectral norm has another slope in each direction there.
        assert np.all(np.isfinite(jax.jvp(lambda x: prox.spectral(x, 0.8), (x,), (dx,))[1]))
    np.testing.assert_allclose(slope, (ahead - back) / (2 * h), rtol=1e-5, atol=1e-6)


# Law 6: sharded arrays.


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
@pytest.mark.parametrize(
    "case",
    [c for c in SPARSE if (c.shards or c.function == "l0") and (3, 4) in c.shapes and c.function != "linf"],
    ids=str,
)
def test_sharded(case, axis_type):
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(axis_type, axis_type))
    x = jnp.asarray(sample((16, 24)), jnp.float32)
    steps = jnp.asarray(case.steps[0] * np.exp(sample((16, 24), 1)), jnp.float32)
    for step in (jnp.float32(case.steps[0]), steps):
        expected = jitted(case)(x, step)
        with jax.set_mesh(mesh):
            for spec in (PartitionSpec("d"), PartitionSpec(None, "d"), PartitionSpec(("d", "m"), None)):
                sharding = NamedSharding(mesh, spec)
                placed = jax.device_put(x, sharding)
                result = jitted(case)(placed, jax.device_put(step, sharding) if step.ndim else step)
                np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-6)
                assert result.sharding.is_equivalent_to(placed.sharding, 2)


# Law 7: errors.

X = jnp.array([[1.0, -2.0], [0.5, 3.0]])
ERRORS = [
    (lambda: prox.l1(jnp.arange(3), 1.0), TypeError, r"`x` must be a real floating-point array, got int32\[3\]"),
    (lambda: prox.l1(X, -1.0), ValueError, r"`step` must be finite and >= 0, got -1.0"),
    (lambda: prox.l1(X, np.inf), ValueError, r"`step` must be finite and >= 0, got inf"),
    (lambda: prox.l1(X, "1"), TypeError, r"`step` must be a number, got str '1'"),
    (lambda: prox.l1(X, None), TypeError, r"`step` must be a number, got None"),
    (
        lambda: prox.l1(X, jnp.ones(2)),
        ValueError,
        r"`step` must be a scalar or an array of .* \(2, 2\); got float32\[2\]",
    ),
    (
        lambda: prox.linf(X, jnp.ones((2, 2))),
        ValueError,
        r"`step` must be a scalar, since .* not separate; got float32",
    ),
    (lambda: prox.nuclear(X, jnp.ones((2, 2))), ValueError, r"`step` must be a scalar"),
    (lambda: prox.nuclear(jnp.ones(3), 1.0), ValueError, r"`x` must have rank >= 2"),
    (lambda: prox.l1_l2(X, 1.0, l1=-0.1), ValueError, r"`l1` must be finite and >= 0, got -0.1"),
    (
        lambda: prox.l1_l2(X, 1.0, l2=jnp.ones(2)),
        ValueError,
        r"`l2` must be a scalar, got float32\[2\]; map .* `jax.vmap`",
    ),
    (lambda: prox.huber(X, 1.0, delta=0.0), ValueError, r"`delta` must be finite and > 0, got 0.0"),
    (lambda: prox.mcp(X, 1.0, gamma=0), ValueError, r"`gamma` must be finite and > 0, got 0"),
    (lambda: prox.scad(X, 1.0, a=1), ValueError, r"`a` must be finite and > 1, got 1"),
    (lambda: prox.log_sum(X, 1.0, epsilon=-1), ValueError, r"`epsilon` must be finite and > 0, got -1"),
    (
        lambda: prox.anchor(X, 1.0, target=jnp.ones(2)),
        ValueError,
        r"`target` must be an array .* \(2, 2\), got float32\[2\]",
    ),
    (
        lambda: prox.anchor(X, 1.0, target=X, fisher=X[0]),
        ValueError,
        r"`fisher` must be a number or an array of the shape",
    ),
    (lambda: prox.anchor(X, 1.0, target="x"), TypeError, r"`target` must be a real number, got str"),
    (lambda: prox.group_lasso(X, 1.0, group_axis=2), ValueError, r"`group_axis` must lie in \[-2, 2\) for rank 2"),
    (
        lambda: prox.group_lasso(X, 1.0, group_axis=()),
        ValueError,
        r"`group_axis` must name at least one axis, got \(\)",
    ),
    (
        lambda: prox.group_lasso(X, 1.0, batch_axis=1),
        ValueError,
        r"`group_axis` and `batch_axis` must not share an axis",
    ),
    (lambda: prox.group_lasso(X, 1.0, size_weighted=1), TypeError, r"`size_weighted` must be a bool, got int 1"),
    (lambda: prox.group_lasso(jnp.ones(()), 1.0), ValueError, r"`group_axis` must lie in \[-0, 0\) for rank 0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[m for _, _, m in ERRORS])
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
    if "scalar" in message:
        with pytest.raises(kind, match=message):
            jax.jit(call)()


def test_the_table_has_every_prox():
    assert {case.function for case in SPARSE} == set(prox.__all__)


def test_the_reference_of_a_broken_prox_is_seen():
    """The laws can fail: a prox with a constant that is wrong loses to a point near it."""
    broken = SparseCase("broken", "l2", over_weights(lambda s: 0.5 * s**2))
    x = sample((3, 4))
    y = taken(broken, x, 0.3)
    assert objective(broken, y[None], x, 0.3)[0] > objective(broken, nearby(x, y, 10_000), x, 0.3).min() + 1e-6


def test_derivatives_reach_the_strength():
    """How the result moves with the strength of a rule, for strengths that are learned."""
    slope = jax.grad(lambda s: jnp.sum(jaxreg.L1(s).prox(jnp.array([2.0, -3.0, 0.1]), 0.5)))(0.4)
    assert slope == 0.0
    slope = jax.grad(lambda s: jnp.sum(jnp.abs(jaxreg.L1(s).prox(jnp.array([2.0, -3.0, 0.1]), 0.5))))(0.4)
    assert slope == -1.0
