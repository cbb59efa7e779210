"""The laws of projections, over the table of cases."""

import dataclasses
import functools
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from cases import CONSTRAINTS, EACH_CONSTRAINT, FEW_CONSTRAINTS, KEPT
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_shards import AUTO, PLACES, crossed, divisible, in_shards, within

import jaxreg
from jaxreg import Rules, constraints

SCALES = (0.02, 0.3, 1.5, 8.0)


def over(subjects, condition=lambda case: True):
    chosen = [s for s in subjects if condition(s.case)]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=str)


def sample(shape, seed=0, scale=1.5, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).normal(size=shape, scale=scale).astype(dtype)


@functools.cache
def compiled(case):
    return jax.jit(case.project)


def tolerance(case, x):
    """How far the projected point may be off: the rounding of a norm, or of a decomposition."""
    return (3e-5 if case.case.decomposes else 3e-6) * max(1.0, float(np.abs(x).max(initial=0)))


def nearby(case, x, y, count):
    """Points of the set at all distances from y, made without the code under test."""
    rng = np.random.default_rng([count, *y.shape])
    reach = 10 ** rng.uniform(-5, 1, (count, *[1] * y.ndim))
    noise = reach * rng.normal(size=(count, *y.shape)) * (rng.uniform(size=(count, *y.shape)) < 0.7)
    return np.concatenate([case.into(y + noise), case.into(x + noise), case.into(noise), case.into(x[None])])


@over(CONSTRAINTS)
def test_a_projection_is_the_nearest_point_of_the_set(case):
    for seed, scale in enumerate(SCALES):
        x = sample(case.shape, seed, scale)
        y = np.asarray(compiled(case)(x), np.float64)
        assert case.outside(y) <= tolerance(case, x)
        points = nearby(case, x, y, 3_000)
        distances = np.sqrt(np.sum((points - x).reshape(len(points), -1) ** 2, axis=1))
        assert np.linalg.norm(y - x) <= distances.min() + tolerance(case, x) * np.sqrt(x.size)


@over(CONSTRAINTS, lambda case: case.convex)
def test_a_projection_on_a_convex_set_is_nonexpansive(case):
    rng = np.random.default_rng(0)
    for seed, scale in enumerate(SCALES):
        x = sample(case.shape, seed, scale)
        y = x + (10 ** rng.uniform(-3, 0.5) * rng.normal(size=x.shape)).astype(np.float32)
        moved = np.linalg.norm(compiled(case)(x) - compiled(case)(y))
        assert moved <= np.linalg.norm(np.float64(x) - y) * (1 + 1e-5) + tolerance(case, x)


def bits(x):
    x = np.asarray(x)
    return x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, jnp.float32) for case in FEW_CONSTRAINTS]
    + [(case, dtype) for case in EACH_CONSTRAINT for dtype in (jnp.bfloat16, jnp.float16)],
    ids=str,
)
def test_what_lies_in_the_set_keeps_every_bit(case, dtype):
    """Also after ten thousand times, where Keras shrinks what lies inside."""
    times = 100 if case.case.decomposes else 10_000

    @jax.jit
    def repeated(y):
        return jax.lax.fori_loop(0, times, lambda _, z: case.project(z), y)

    for seed, scale in enumerate(SCALES):
        x = jnp.asarray(sample(case.shape, seed, scale), dtype)
        y = compiled(case)(x)
        assert (y.dtype, y.shape) == (dtype, x.shape)
        again = repeated(y)
        np.testing.assert_array_equal(bits(again), bits(y))


@over(CONSTRAINTS, lambda case: not case.decomposes)
def test_points_inside_made_by_numpy_keep_every_bit(case):
    for seed, scale in enumerate(SCALES):
        inside = case.into(sample(case.shape, seed, scale)[None])[0].astype(np.float32)
        kept = bits(compiled(case)(inside)) == bits(inside)
        assert kept.all()


def test_points_inside_at_the_edge_of_rounding():
    """4 units in the last place of the bound count as inside, and a hundred do not."""
    for bound in (1.0, 0.7, 1.75, 3e4, 2e-5):
        bound = np.float32(bound)
        unit = np.spacing(bound)
        for steps, is_inside in ((-4, True), (0, True), (4, True), (100, False)):
            x = np.array([[np.float64(bound) + steps * np.float64(unit)]], np.float32)
            assert (constraints.MaxNorm(bound)(x) == x).all() == is_inside
            assert (constraints.L1Ball(bound)(x) == x).all() == is_inside
            assert (constraints.UnitNorm(bound)(x) == x).all() == is_inside
            assert (constraints.SpectralNorm(bound)(x) == x).all() == is_inside


@over(FEW_CONSTRAINTS)
def test_transforms_agree(case):
    x = jnp.asarray(sample(case.shape))
    y = compiled(case)(x)
    near = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
    near(case.project(x), y)
    near(jax.vmap(case.project)(jnp.stack([x, x]))[1], y)
    near(jax.lax.scan(lambda _, x: (None, case.project(x)), None, x[None])[1][0], y)


@over(FEW_CONSTRAINTS)
def test_derivatives(case):
    """Against differences in float64, along random directions, and in reverse."""
    with jax.enable_x64(True):
        project = jax.jit(case.project)
        along = jax.jit(lambda x, dx: jax.jvp(case.project, (x,), (dx,))[1])
        back = jax.jit(lambda x, dy: jax.vjp(case.project, x)[1](dy)[0])
        further = jax.jit(
            lambda x: (jax.jacfwd(case.project)(x), jax.hessian(lambda x: jnp.sum(case.project(x) ** 2))(x))
        )
        for seed in (1, 2):
            x = sample(case.shape, seed, dtype=np.float64)
            dx, dy = sample(case.shape, seed + 10, dtype=np.float64), sample(case.shape, seed + 20, dtype=np.float64)
            change = along(x, dx)
            numeric = (np.asarray(project(x + 1e-6 * dx)) - np.asarray(project(x - 1e-6 * dx))) / 2e-6
            np.testing.assert_allclose(change, numeric, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(np.sum(back(x, dy) * dx), np.sum(change * dy), rtol=1e-8, atol=1e-8)
            if x.size <= 12:
                assert all(np.isfinite(derivative).all() for derivative in further(x))


@functools.cache
def pulled_back(case):
    return jax.jit(jax.grad(lambda x: jnp.sum(case.project(x) * 3)))


@over(FEW_CONSTRAINTS)
def test_awkward_points(case):
    """Zeros, equal weights and zero groups have finite values and derivatives."""
    for x in (np.zeros(case.shape), np.ones(case.shape), -np.ones(case.shape)):
        x = jnp.asarray(x, jnp.float32)
        y = compiled(case)(x)
        assert jnp.isfinite(y).all()
        if not case.case.decomposes:
            assert jnp.isfinite(pulled_back(case)(x)).all()
        if case.case.zero_stays and not x.any() and case.outside(x) == 0:
            assert not y.any()
    empty = jnp.zeros((0, *case.shape[1:]) if case.shape else (0,))
    if case.case.name != "keep_zeros" and len(case.shape) > 1 and not case.case.decomposes:
        assert case.project(empty).shape == empty.shape


@over(CONSTRAINTS)
def test_all_magnitudes(case):
    """Where the answer fits in float32 it is right: norms neither overflow nor vanish."""
    for scale in (1e-30, 1e30):
        x = (sample(case.shape) * np.float32(scale)).astype(np.float32)
        y = np.asarray(compiled(case)(x), np.float64)
        assert np.isfinite(y).all()
        # The bounds are about 1. That of a rank is relative to the largest singular value.
        size = scale if case.case.name == "max_rank" else 1.0
        assert case.outside(y) <= (3e-5 if case.case.decomposes else 1e-5) * size


@over(CONSTRAINTS)
def test_what_is_not_finite_shows(case):
    for bad, place in itertools.product((np.nan, np.inf, -np.inf), {0, int(np.prod(case.shape, dtype=int)) - 1}):
        x = sample(case.shape).reshape(-1)
        x[place] = bad
        y = np.asarray(compiled(case)(x.reshape(case.shape)))
        assert not np.isfinite(y).all()
        if not case.case.spreads:
            assert np.isfinite(np.delete(y.reshape(-1), place)).all() or (
                np.isnan(bad) and case.case.name == "group_sparsity"
            )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
@over(EACH_CONSTRAINT)
def test_low_precision_is_float32_of_the_upcast_input(case, dtype):
    x = jnp.asarray(sample(case.shape), dtype)
    wide = case.project(x.astype(jnp.float32))
    chex.assert_trees_all_close(case.project(x), wide.astype(dtype), rtol=0.02, atol=0.01)


def test_many_weights_of_low_precision():
    x = jnp.full((70_000,), 1.5, jnp.float16)
    y = constraints.MaxNorm(2.0, group_axis=())(x)
    np.testing.assert_allclose(np.linalg.norm(np.float64(y)), 2.0, rtol=5e-3)  # float16 of 0.0076
    assert constraints.MaxNorm(400.0, group_axis=())(x)[0] == 1.5


def test_small_norms_are_scaled_exactly():
    """Keras's UnitNorm made 0.952 of a norm of 1e-6."""
    x = jnp.array([[6e-7], [8e-7]])
    np.testing.assert_allclose(constraints.UnitNorm()(x), [[0.6], [0.8]], rtol=1e-6)


@over(EACH_CONSTRAINT, lambda case: bool(case.numbers))
def test_numbers_may_be_anything_and_retrace_nothing(case):
    x, traces = jnp.asarray(sample(case.shape)), []

    @jax.jit
    def project(constraint, x):
        traces.append(None)
        return constraint(x)

    expected = case.project(x)
    for kind in (float, np.float32, np.float64, jnp.float32):
        numbers = {name: kind(value) for name, value in case.case.numbers.items()}
        chex.assert_trees_all_close(case.make(**numbers)(x), expected, rtol=1e-6)
    for factor in (1.0, 0.5, 0.25):
        numbers = {name: jnp.float32(value * factor) for name, value in case.case.numbers.items()}
        found = project(case.make(**numbers), x)
        chex.assert_trees_all_close(found, case.make(**numbers)(x), rtol=1e-5, atol=1e-6)
    assert len(traces) == 1
    kinds = [field.metadata["kind"] for field in dataclasses.fields(case.make())]
    assert len(jax.tree.leaves(case.make())) == len([kind for kind in kinds if kind in ("number", "bound")])


@over(EACH_CONSTRAINT, lambda case: bool(case.numbers))
def test_bad_numbers_are_errors(case):
    for name in case.case.numbers:
        for bad in (np.nan, "1", True, None, 1j, jnp.zeros((2,), bool)):
            if bad is None and name in ("lower", "upper"):
                continue  # no bound
            with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
                case.make(**{name: bad})
        if name not in ("lower", "upper"):
            for bad in (-1.0, np.inf):
                with pytest.raises(ValueError, match=f"`{name}`"):
                    case.make(**{name: bad})
        with pytest.raises(ValueError, match=f"`{name}` must be a scalar"):
            case.make(**{name: jnp.ones(2)})(sample(case.shape))
        if case.case.above.get(name, -1.0) == 0.0:
            with pytest.raises(ValueError, match=f"`{name}`"):
                case.make(**{name: 0.0})
    with pytest.raises(TypeError, match="`x` must be a real floating-point array"):
        case.make()(np.ones(case.shape, int))


def test_what_cannot_be_meant_is_an_error():
    c = constraints
    for function, words in (
        (lambda: c.MaxNorm(1.0, axis=0), "`group_axis`"),
        (lambda: c.UnitNorm(axis=0), "`group_axis`"),
        (lambda: c.Box(1.0, -1.0), "`lower` must be at most `upper`"),
        (lambda: c.MinMaxNorm(2.0, 1.0), "`min_value` must be at most `max_value`"),
        (lambda: c.MinMaxNorm(rate=1.5), "`rate`"),
        (lambda: c.Sparsity(1.5), "`fraction` must be finite and >= 0 and <= 1"),
        (lambda: c.NM(3, 2), "`n` must be at most `m`"),
        (lambda: c.NM(2.0, 4), "`n` must be an int"),
        (lambda: c.NM(2, 4, axis=(0, 1)), "`axis` must be an int"),
        (lambda: c.NM()(jnp.ones((6, 2))), "a size that 4 divides, got 6"),
        (lambda: c.NM()(jnp.ones(4)), "`axis` must lie in"),
        (lambda: c.MaxRank(-1), "`k` must be >= 0"),
        (lambda: c.MaxRank(1.0), "`k` must be an int"),
        (lambda: c.SpectralNorm()(jnp.ones(3)), "rank >= 2"),
        (lambda: c.MaxNorm(group_axis=2)(jnp.ones((2, 2))), "`group_axis` must lie in"),
        (lambda: c.MaxNorm(batch_axis=-1)(jnp.ones((2, 2))), "must not share an axis"),
        (lambda: c.KeepNorm()(jnp.ones((2, 2))), "`memory` must be the norms"),
        (lambda: c.KeepNorm()(jnp.ones((2, 2)), memory=jnp.ones((1, 3))), r"of shape \(1, 2\), got float32\[1,3\]"),
        (lambda: c.KeepZeros()(jnp.ones(2)), "`memory` must be a mask"),
        (lambda: c.KeepZeros()(jnp.ones(2), memory=jnp.ones(2)), "a mask of bools"),
        (lambda: c.KeepZeros()(jnp.ones(2), memory=jnp.ones(3, bool)), "of the shape of the array"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            function()
    with pytest.raises(TypeError, match="must not subclass MaxNorm"):
        type("Mine", (c.MaxNorm,), {})


@over(CONSTRAINTS, lambda case: case.count is not None)
def test_counts_are_exact(case):
    for seed, scale in enumerate(SCALES):
        x = sample(case.shape, seed, scale)
        assert np.sum(np.asarray(compiled(case)(x)) == 0) == case.case.count(x.shape, case.layout, **case.case.numbers)
    ties = compiled(case)(jnp.ones(case.shape))
    assert np.sum(np.asarray(ties) == 0) == case.case.count(case.shape, case.layout, **case.case.numbers)
    np.testing.assert_array_equal(ties, case.into(np.ones((1, *case.shape)))[0])


@functools.cache
def of_any_data():
    """Arrays of one shape, and one of two columns."""
    rng = np.random.default_rng(1)
    several = {
        "normal": rng.normal(size=(3, 700)),
        "ties": rng.integers(-3, 4, (3, 700)),
        "few": rng.normal(size=(3, 2)),
        "spread": rng.normal(size=(3, 700)) * 10.0 ** rng.integers(-36, 30, (3, 700)),
        "zeros": rng.normal(size=(3, 700)) * (rng.uniform(size=(3, 700)) < 0.2),
    }
    return {kind: x.astype(np.float32) for kind, x in several.items()}


@jax.jit
def with_zeros(fraction, x):
    return constraints.Sparsity(fraction, batch_axis=0)(x)


@pytest.mark.parametrize("fraction", [0.0, 1e-4, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0])
def test_the_smallest_are_found_in_any_data(fraction):
    """Against a stable sort, for one array and for several at once, with the fraction known and traced."""
    several, one = (jax.jit(constraints.Sparsity(fraction, batch_axis=axes)) for axes in (0, ()))
    for kind, x in of_any_data().items():
        count = round(fraction * x.shape[1])
        order = np.argsort(np.argsort(np.abs(x), axis=1, kind="stable"), axis=1)
        expected = np.where(order < count, 0, x)
        np.testing.assert_array_equal(several(x), expected, err_msg=kind)
        np.testing.assert_array_equal(with_zeros(jnp.float32(fraction), x), expected, err_msg=kind)
        np.testing.assert_array_equal(one(x[1]), expected[1], err_msg=kind)
        with jax.enable_x64(True):
            np.testing.assert_array_equal(one(np.float64(x[1])), expected[1], err_msg=kind)


def test_no_sort_is_compiled():
    x = jnp.ones((64, 64))
    for constraint in (
        constraints.Sparsity(0.9),
        constraints.GroupSparsity(0.5),
        constraints.L1Ball(),
        constraints.Simplex(),
    ):
        text = jax.jit(constraint).lower(x).compile().as_text()
        assert " sort(" not in text


def test_min_max_norm_goes_a_share_of_the_way():
    """Keras's formula, where Keras's own ε does not matter."""
    x = sample((6, 5))
    norms = np.sqrt(np.sum(np.float64(x) ** 2, axis=0, keepdims=True))
    for rate in (0.0, 0.3, 1.0):
        desired = rate * np.clip(norms, 1.0, 2.0) + (1 - rate) * norms
        np.testing.assert_allclose(constraints.MinMaxNorm(1.0, 2.0, rate)(x), x * desired / norms, rtol=1e-6)


# Arrays on a mesh.


ON_MESH = [case for case in FEW_CONSTRAINTS if case.shape]


@pytest.mark.parametrize(("case", "spec", "place"), list(crossed(ON_MESH, per_subject=1)))
def test_sharded(case, spec, place):
    x = sample(divisible(case.shape))
    sharding = NamedSharding(PLACES[place][0], spec)
    function = jax.jit(case.project)
    with within(place):
        found = function(jax.device_put(x, sharding))
    np.testing.assert_allclose(found, function(x), rtol=2e-5, atol=3e-6)
    assert found.sharding.is_equivalent_to(sharding, x.ndim)


@pytest.mark.parametrize(
    ("case", "spec"),
    list(zip(EACH_CONSTRAINT, itertools.cycle([P("d"), P(None, ("d", "m")), P("m", "d"), P()]), strict=False)),
    ids=str,
)
def test_rules_with_specs(case, spec):
    x = sample((16, 24))
    rules = Rules((r"kernel$", case.make()))
    start = case.memory((16, 24)) if case.case.memory else np.ones((16, 24), np.float32)
    expected = rules.prox({"kernel": x}, memory=rules.init({"kernel": jnp.asarray(start)}))["kernel"]
    known = rules.with_specs(spec)

    def step(both):
        return known.prox({"kernel": both["x"]}, memory=known.init({"kernel": both["start"]}))["kernel"]

    placed = jax.device_put({"x": x, "start": start}, NamedSharding(AUTO, spec))
    found = in_shards(step, spec, spec)(placed)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=3e-6)


def test_the_table_has_every_constraint():
    rows = {type(case.make()).__name__ for case in EACH_CONSTRAINT}
    assert rows == set(constraints.__all__) - {"Constraint"}
    assert len({case.name for case in KEPT}) == len(KEPT)


@over(EACH_CONSTRAINT)
def test_configs_and_names(case):
    made = case.make()
    assert jaxreg.deserialize(jaxreg.serialize(made)) == made
    assert eval(repr(made), vars(constraints)) == made
    assert 2.0 * made == made * 3 == made
    name = type(made).__name__
    if name != "Box":
        assert jaxreg.get(name) == type(made)()
    leaves, structure = jax.tree.flatten(made)
    assert jax.tree.unflatten(structure, leaves) == made


# Other people's projections, where they are right.


@pytest.mark.standard_promotion  # optax mixes dtypes
@pytest.mark.parametrize("scale", SCALES)
def test_projections_of_optax_and_scipy(scale):
    x = sample((40,), 5, scale)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6 * max(scale, 1))
    others = optax.projections
    near(constraints.NonNeg()(x), others.projection_non_negative(x))
    near(constraints.Box(-0.3, 0.7)(x), others.projection_box(x, -0.3, 0.7))
    near(constraints.Simplex(1.3, group_axis=())(x), others.projection_simplex(jnp.asarray(x), 1.3))
    near(constraints.L1Ball(1.3, group_axis=())(x), others.projection_l1_ball(jnp.asarray(x), 1.3))
    near(constraints.MaxNorm(1.3, group_axis=())(x), others.projection_l2_ball(jnp.asarray(x), 1.3))
    near(constraints.UnitNorm(1.3, group_axis=())(x), others.projection_l2_sphere(jnp.asarray(x), 1.3))
    for shape in ((5, 3), (4, 4)):
        matrix = sample(shape, 6, scale)
        np.testing.assert_allclose(
            constraints.Orthonormal()(matrix), scipy.linalg.polar(np.float64(matrix))[0], atol=2e-5
        )


def test_the_gradient_reaches_the_numbers():
    """The derivative of a radius, against a difference in float64."""
    with jax.enable_x64(True):
        for case in EACH_CONSTRAINT:
            if case.case.numbers and not case.case.count:
                x = jnp.asarray(sample(case.shape, 3, dtype=np.float64))

                def total(factor, case=case, x=x):
                    numbers = {name: value * factor for name, value in case.case.numbers.items()}
                    return jnp.sum(case.project(x, **numbers) * jnp.cos(jnp.arange(x.size)).reshape(x.shape))

                total = jax.jit(total)
                slope = jax.grad(total)(jnp.asarray(1.0))
                numeric = (total(jnp.asarray(1.0 + 1e-6)) - total(jnp.asarray(1.0 - 1e-6))) / 2e-6
                np.testing.assert_allclose(slope, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [1e-6, 1e-4, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [1, 2, 1_000, 100_000])
def test_sums_of_many_weights(size, share):
    """Against a sort in float64: the radius may be far above or far below the single weights."""
    x = sample((size,), 7, 0.02)
    wide = np.abs(np.float64(x))
    radius = np.float32(share * wide.sum())

    def exact(sizes):
        ordered = np.sort(sizes)[::-1]
        sums = np.cumsum(ordered) - radius
        count = np.nonzero(ordered * np.arange(1, size + 1) > sums)[0][-1] + 1
        return np.maximum(sizes - sums[count - 1] / count, 0)

    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-7 * wide.max() * (1 + np.log2(size)))
    near(constraints.L1Ball(radius, group_axis=())(x), np.sign(x) * exact(wide))
    near(constraints.Simplex(radius, group_axis=())(x), exact(np.float64(x)))
    near(constraints.Simplex(radius, group_axis=())(x + 1), exact(np.float64(x + 1)), atol=3e-7 * (1 + np.log2(size)))


def test_radii_near_the_largest_number():
    assert constraints.L1Ball(3e38, group_axis=())(jnp.array([3e38, -2e38])).tolist() == pytest.approx(
        [2e38, -1e38], rel=1e-5
    )
    assert constraints.Simplex(3e38, group_axis=())(jnp.array([1.0, -2.0])).tolist() == pytest.approx(
        [1.5e38] * 2, rel=1e-5
    )
    assert constraints.Simplex(3e38, group_axis=())(jnp.array([1.0])).tolist() == pytest.approx([3e38], rel=1e-5)


def test_signs_of_zero_and_denormal_numbers_are_kept():
    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
        tiny = float(jnp.finfo(dtype).smallest_subnormal)
        x = jnp.asarray(np.asarray([-0.0, 0.0, tiny, 0.5]), dtype)
        for constraint in (constraints.NonNeg(), constraints.Box(-1.0, 1.0), constraints.Box(0.0, 1.0)):
            np.testing.assert_array_equal(bits(constraint(x)), bits(x))
            np.testing.assert_array_equal(bits(jax.jit(constraint)(x)), bits(x))


def test_limits_of_pairs():
    """Of Python's and NumPy's numbers, and of schedules that return these."""
    for low, high in ((2.0, 1.0), (np.float32(2), np.float32(1)), (np.array(2.0), 1), (lambda c: 2.0, lambda c: 1.0)):
        with pytest.raises(ValueError, match="`min_value` must be at most `max_value`"):
            constraints.MinMaxNorm(low, high).at(0)
        with pytest.raises(ValueError, match="`lower` must be at most `upper`"):
            constraints.Box(low, high).at(0)
    box = constraints.Box(None, 1.0)
    assert box == constraints.Box(-np.inf, 1)
    assert json.loads(json.dumps(jaxreg.serialize(box), allow_nan=False)) == jaxreg.serialize(box)
    assert jaxreg.deserialize(jaxreg.serialize(box)) == box


def test_misplaced_options():
    for call, words in (
        (lambda: constraints.MaxNorm(group_axis=lambda c: 0), "`group_axis` must be an int"),
        (lambda: constraints.MaxNorm(Rules(("a", "l2"))), "`max_value` must be a number"),
        (lambda: jaxreg.L2(nnx.Param(jnp.ones(()))), "`l2` must be a number"),
        (lambda: jaxreg.L1L2(lambda c: None).at(0), "`l1` must be a number, got None"),
        (lambda: jaxreg.get("box"), r"write Box\(lower=..., upper=...\)"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    assert not constraints.Sparsity(jnp.int32(1))(jnp.ones(4)).any()
    total = jaxreg.GroupLasso(0.1, (-1,)) + constraints.MaxNorm(group_axis=-1)
    assert total.has_prox
    assert not (jaxreg.GroupLasso(0.1, batch_axis=0) + constraints.MaxNorm()).has_prox
