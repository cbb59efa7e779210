"""The laws of penalties and of regularizers, over the table of cases."""

import functools
import inspect
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import (
    CASES,
    CUSTOM,
    FEW,
    FEW_NUMBERED,
    MADE,
    MAKERS,
    NUMBERED,
    OF_PAIRS,
    ONE,
    PENALTIES,
    REGULARIZERS,
    VARIANTS,
    own_strengths,
)
from references import finite_differences

import jaxreg
from jaxreg import penalties, prox


def over(subjects, condition=lambda case: True):
    """Parametrizes over the variants, the regularizers or the rows whose row fulfils a condition."""
    chosen = [s for s in subjects if condition(getattr(s, "case", s))]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=str)


@functools.cache
def compiled(case, static):
    """The value and the gradient, compiled once for each shape, whatever the numbers among the options are."""
    return jax.jit(lambda x, numbers: jax.value_and_grad(case.penalty)(x, **dict(static), **numbers))


def graded(variant, x):
    return compiled(variant.case, variant.static)(jnp.asarray(x), variant.numbers(np.shape(x)))


@functools.cache
def compiled_hessian(case, static):
    return jax.jit(lambda x, numbers: jax.hessian(case.penalty)(x, **dict(static), **numbers))


@jax.jit
def valued(regularizer, x):
    """The value of a regularizer, compiled once for each structure."""
    return regularizer(x)


@jax.jit
def graded_regularizer(regularizer, x):
    """The value, the gradient with respect to the weights, and that with respect to the strengths."""
    value, (of_strengths, of_weights) = jax.value_and_grad(lambda r, x: r(x), argnums=(0, 1))(regularizer, x)
    return value, of_weights, of_strengths


def sample(shape, dtype=np.float64, seed=0):
    """Values away from the kink at 0."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.2, 2.0, shape)).astype(dtype)


def slopes(variant, x, step=1e-6):
    """The gradient of the reference."""
    return finite_differences(variant.reference, x, step)


# The table.


def test_the_table_has_everything_that_is_shipped():
    shipped = {value for name in jaxreg.__all__ if inspect.isclass(value := getattr(jaxreg, name))}
    shipped = {cls for cls in shipped if issubclass(cls, jaxreg.Regularizer)} - {jaxreg.Regularizer}
    for module, field in ((penalties, "penalty"), (prox, "prox")):
        functions = {getattr(module, name) for name in module.__all__ if name not in OF_PAIRS}
        found = [f for case in CASES if (f := getattr(case, field)) in functions]
        assert set(found) == functions
        assert len(found) == len(functions)
    assert {case.regularizer for case in CASES} >= shipped
    for case in PENALTIES:
        if case.regularizer is not None:
            assert case.regularizer in shipped


# The options that no row varies, since they change no value or need a key, with the tests that vary them.
VARIED_ELSEWHERE = {
    "precision": ("test_gram", "test_precision_reaches_every_product"),
    "axis_name": ("test_activity", "test_statistics_are_those_of_the_whole_batch"),
    "squared": ("test_orthogonality", "test_soft_orthogonality_without_the_square"),
    "kept": ("test_kept_blocks", "test_a_kept_block_of_few_dimensions_is_exact"),
    "sample": ("test_samples", "test_a_sample_is_an_unbiased_estimate"),
    "key": ("test_samples", "test_a_sample_is_an_unbiased_estimate"),
}


def test_the_table_varies_every_option():
    """Every option of a penalty, every option of a prox and every field of a regularizer takes two values at least."""
    used = set()
    for case in PENALTIES:
        if not case.penalty.__module__.startswith("jaxreg"):
            continue
        signatures = [inspect.signature(f) for f in (case.penalty, case.prox, case.regularizer) if f is not None]
        names = {name for s in signatures for name in s.parameters} - {"x", "step"}
        if case.remembers:
            names -= set(own_strengths(case))  # test_memory.py varies these
        tried = {name: set() for name in names}
        for layout in case.layouts:
            for name in layout.options:
                tried[name] |= {repr(layout.options[name])}
            # An axis that a layout does not name is at its default.
            for name in names - set(case.options) - set(layout.options):
                tried[name] |= {"default"}
        for name, values in case.options.items():
            tried[name] |= set(map(repr, values))
        for made in REGULARIZERS:
            if made.case is case:
                for name, value in made.own.items():
                    tried[name] |= {repr(value)}
        once = {name for name, values in tried.items() if len(values) < 2}
        assert once <= set(VARIED_ELSEWHERE), (case.name, once)
        used |= once
    assert used == set(VARIED_ELSEWHERE)
    for module, test in VARIED_ELSEWHERE.values():
        assert callable(getattr(__import__(module), test))


# Law 1: the value is that of a NumPy reference, the gradient that of finite differences of the reference.


@over(VARIANTS)
def test_value_and_gradient_in_float64(case):
    x = sample(case.shape)
    with jax.enable_x64(True):
        value, gradient = graded(case, x)
    chex.assert_type([value, gradient], jnp.float64)
    chex.assert_shape([value, gradient], [(), case.shape])
    np.testing.assert_allclose(value, case.reference_at(x), rtol=1e-13)
    rounding = 1e-8 * max(1.0, abs(float(value)))  # of the differences of the reference
    np.testing.assert_allclose(gradient, slopes(case, x), rtol=1e-6, atol=rounding)
    if case.case.gradient is not None:
        np.testing.assert_allclose(gradient, case.exact_gradient(x), rtol=1e-12, atol=1e-12)


@over(VARIANTS)
def test_value_and_gradient_in_float32(case):
    x = sample(case.shape, np.float32)
    value, gradient = graded(case, x)
    chex.assert_type([value, gradient], jnp.float32)
    np.testing.assert_allclose(value, case.reference_at(x), rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes(case, x), rtol=1e-4, atol=1e-6)


@over(VARIANTS, lambda case: case.degree is not None)
def test_a_homogeneous_penalty_obeys_eulers_theorem(case):
    """The gradient along x is the degree times the value, so it is orthogonal to x where only directions count."""
    x = sample(case.shape, np.float32)
    value, gradient = graded(case, x)
    rounding = 1e-6 * max(1.0, float(value))  # of the terms of the gradient, which cancel where the degree is 0
    np.testing.assert_allclose(np.vdot(gradient, x), case.case.degree * value, rtol=1e-5, atol=rounding)


@over([v for v in VARIANTS if v.layout is v.case.layouts[0]], lambda case: case.degree != 0 and case.of_sizes)
def test_a_penalty_of_sizes_pulls_towards_zero(case):
    x = sample(case.shape, np.float32)
    assert np.vdot(graded(case, x)[1], x) > 0.1


# Law 2: every way of calling gives the same value, and every derivative exists.


@over(FEW)
def test_transforms_agree(case):
    stack = jnp.stack([jnp.asarray(sample(case.shape, np.float32, seed)) for seed in range(3)])
    eager = jnp.stack([case.penalty(x) for x in stack])
    one_by_one = jax.lax.scan(lambda carry, x: (carry, case.penalty(x)), 0, stack)[1]
    jitted = jnp.stack([graded(case, x)[0] for x in stack])
    for values in (jitted, jax.jit(jax.vmap(case.penalty))(stack), one_by_one):
        chex.assert_trees_all_close(values, eager, rtol=2e-6)


@functools.cache
def compiled_derivatives(case, static):
    @jax.jit
    def derivatives(x, v, numbers):
        def penalty(x):
            return case.penalty(x, **dict(static), **numbers)

        gradient = jax.grad(penalty)
        forward = jax.jvp(penalty, (x,), (v,))[1], jax.jacfwd(penalty)(x)
        twice = jax.grad(lambda x: jnp.vdot(gradient(x), v))(x), jax.jvp(gradient, (x,), (v,))[1]
        return gradient(x), forward, jnp.tensordot(jax.hessian(penalty)(x), v, x.ndim), twice

    return derivatives


@over(FEW)
def test_all_derivatives(case):
    x, v, step = sample(case.shape), sample(case.shape, seed=1), 1e-6
    derivatives = functools.partial(compiled_derivatives(case.case, case.static), numbers=case.numbers(case.shape))
    with jax.enable_x64(True):
        gradient, (slope, jacobian), product, (reverse, mixed) = jax.tree.map(np.asarray, derivatives(x, v))
        higher, lower = graded(case, x + step * v)[1], graded(case, x - step * v)[1]
        higher, lower = np.asarray(higher), np.asarray(lower)
    difference = (case.reference_at(x + step * v) - case.reference_at(x - step * v)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jacobian, gradient, rtol=1e-12, atol=1e-14)
    for second in (product, reverse, mixed):
        np.testing.assert_allclose(second, (higher - lower) / (2 * step), rtol=1e-5, atol=1e-7)


@over(NUMBERED)
def test_options_that_are_traced_are_those_of_python(case):
    x = sample(case.shape, np.float32)
    chex.assert_trees_all_close(graded(case, x)[0], case.penalty(jnp.asarray(x)), rtol=2e-6)


# Law 3: sums accumulate in float32 at least.


@over(FEW)
def test_low_precision_is_float32_of_the_upcast_input(case):
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(sample(case.shape, np.float32)).astype(dtype)
        value, gradient = graded(case, x)
        wide_value, wide_gradient = graded(case, x.astype(jnp.float32))
        chex.assert_type([value, gradient], [jnp.float32, dtype])
        chex.assert_trees_all_equal((value, gradient), (wide_value, wide_gradient.astype(dtype)))
        np.testing.assert_allclose(value, case.reference_at(x), rtol=1e-6)


@pytest.mark.parametrize(("penalty", "exact"), [(penalties.l1, 450_000.0), (penalties.l2, 675_000.0)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_long_sums_in_low_precision(penalty, exact, dtype):
    x = jnp.full((1000, 300), 1.5, dtype)  # the sums are beyond float16, and too fine for bfloat16
    assert penalty(x) == exact


# Law 4: finite at every awkward point, and the right subgradient there.

# Those of the second kind are so small that the second derivative is beyond float32.
AWKWARD = {
    "zeros": lambda x: 0 * x,
    "a zero row": lambda x: np.concatenate([0 * x[:1], x[1:]]),
    "a zero column": lambda x: np.concatenate([0 * x[..., :1], x[..., 1:]], -1),
    "one row": lambda x: x[:1],
    "one column": lambda x: x[..., :1],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "repeated rows": lambda x: np.repeat(x[:1], len(x), 0),
}
SMALL = {
    "a tiny row": lambda x: np.concatenate([1e-30 * x[:1], x[1:]]),
    "a denormal row": lambda x: np.concatenate([1e-42 * x[:1], x[1:]]).astype(np.float32),
}


def awkward(kinds, shape):
    """The awkward arrays by name; a scalar has one."""
    x = np.array(sample(shape, np.float32))
    return {kind: make(x) for kind, make in kinds.items()} if shape else {"zero": np.float32(0.0)}


@over(FEW_NUMBERED)
def test_awkward_points_are_finite_and_right(case):
    for kind, x in awkward(AWKWARD | SMALL, case.shape).items():
        value, gradient = graded(case, x)
        assert np.all(np.isfinite(gradient)), kind
        np.testing.assert_allclose(value, case.reference_at(x), rtol=1e-6, atol=1e-30, err_msg=kind)


@over(ONE)
def test_second_derivatives_at_awkward_points_are_finite(case):
    for kind, x in awkward(AWKWARD, case.shape).items():
        hessian = compiled_hessian(case.case, case.static)(jnp.asarray(x), case.numbers(x.shape))
        assert np.all(np.isfinite(hessian)), kind


@over(VARIANTS, lambda case: case.least_at_zero)
def test_a_zero_array_is_not_pushed(case):
    np.testing.assert_array_equal(graded(case, np.zeros(case.shape, np.float32))[1], np.zeros(case.shape))


@over(VARIANTS, lambda case: not case.least_at_zero)
def test_a_zero_array_is_pushed_where_the_least_is_elsewhere(case):
    assert np.any(graded(case, np.zeros(case.shape, np.float32))[1] != 0)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_a_zero_vector_has_no_gradient_and_no_effect(mode):
    x = sample((4, 4), np.float32)
    x[1] = 0.0
    x = x if mode == "rows" else x.T
    gradient = jax.grad(lambda x: penalties.orthogonal(x, mode=mode))(jnp.asarray(x))
    gradient = gradient if mode == "rows" else gradient.T
    np.testing.assert_array_equal(gradient[1], np.zeros(4))
    assert np.all(np.abs(gradient[jnp.array([0, 2, 3])]) > 0)


def assert_right_at(case, scale):
    x = sample(case.shape, np.float32) * np.float32(0.9 * scale)
    value, gradient = graded(case, x)
    with np.errstate(over="ignore"):
        exact = np.float32(case.reference_at(x))
    if case.case.gradient is None:
        slope = slopes(case, x, 1e-4 * (np.abs(np.float64(x)) + (not case.case.least_at_zero)))
    else:
        slope = case.exact_gradient(x)
    np.testing.assert_allclose(value, exact, rtol=2e-6, atol=1e-37, err_msg=f"{scale}")
    fits = np.abs(slope) <= np.finfo(np.float32).max
    unit = np.max(np.abs(slope), initial=0.0)
    atol = 2e-6 * unit + 1e-37
    np.testing.assert_allclose(np.asarray(gradient)[fits], slope[fits], rtol=1e-4, atol=atol, err_msg=f"{scale}")


@over(VARIANTS)
def test_value_and_gradient_are_right_at_every_scale(case):
    """Wherever the exact answer fits in float32, it is found; the gradient is compared, and not only finite."""
    for scale in (1e-10, 1e-8, 1e10, 1e25, 1e30, 1e38):
        assert_right_at(case, scale)


@over(VARIANTS, lambda case: not case.underflows)
def test_value_and_gradient_are_right_at_the_smallest_scale(case):
    assert_right_at(case, 1e-30)


@over(VARIANTS, lambda case: case.underflows)
def test_products_that_vanish_give_no_nan(case):
    """Products of weights of 1e-30 are 0 in float32."""
    x = sample(case.shape, np.float32) * np.float32(1e-30)
    value, gradient = graded(case, x)
    np.testing.assert_allclose(value, case.reference_at(x), rtol=2e-6, atol=1e-37)
    assert np.all(np.isfinite(gradient))


@over(VARIANTS, lambda case: case.degree == 0)
def test_only_directions_count_at_every_scale(case):
    x = sample(case.shape, np.float32)
    value, gradient = graded(case, x)
    for scale in (np.float32(1e30), np.float32(1e38)):
        there, slope = graded(case, x * scale)
        np.testing.assert_allclose(there, value, rtol=2e-6)
        assert np.all(np.isfinite(slope))
    # The gradient at 1e38 is below the normal numbers.
    np.testing.assert_allclose(graded(case, x * np.float32(1e30))[1] * np.float32(1e30), gradient, rtol=1e-4, atol=1e-7)


@over(VARIANTS, lambda case: case.underflows)
def test_rows_about_the_least_norm_of_a_cosine(case):
    """Below a norm of 1e-7 a vector is divided by 1e-7, above it by its norm; the gradient is another one."""
    dimensions = {"rows": "columns", "columns": "rows"}[case.options["mode"]]
    lengths = np.sqrt(np.sum(sample(case.shape) ** 2, axis=case.layout.view[dimensions], keepdims=True))
    for norm in (0.3e-7, 0.9e-7, 1.1e-7, 3e-7):
        x = (sample(case.shape) * norm / lengths).astype(np.float32)
        value, gradient = graded(case, x)
        slope = slopes(case, x, 1e-6 * np.abs(np.float64(x)))
        np.testing.assert_allclose(value, case.reference_at(x), rtol=2e-6, atol=1e-7, err_msg=f"{norm}")
        atol = 1e-5 * np.max(np.abs(slope))
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=atol, err_msg=f"{norm}")


# Penalties whose squares overflow where their exact values do not.
LARGE_OPTIONS = (
    (penalties.mcp, references.mcp, {"lam": 1.0, "gamma": 1e30}, (1e25, -3e20, 1.0)),
    (penalties.mcp, references.mcp, {"lam": 1e-10, "gamma": 1e38}, (1e25, -3e29)),
    (penalties.scad, references.scad, {"lam": 1e15, "a": 1e10}, (1e22, -3e20, 1.0)),
    (penalties.scad, references.scad, {"lam": 1e20, "a": 3.7}, (1e18, -3e15, 1.0)),
    (penalties.scad, references.scad, {"lam": 1.0, "a": 1e30}, (1e25, -3e20, 1.0)),
    (penalties.huber, references.huber, {"delta": 1e30}, (1e25, -3e20, 1.0)),
    (penalties.huber, references.huber, {"delta": 1e-30}, (1e-8, 1e-29, -1e-31)),
    (penalties.huber, references.huber, {"delta": 1.0}, (1e-8, -1e-12, 1e-20)),
    (penalties.log_sum, references.log_sum, {"epsilon": 1e30}, (1e25, -3e20, 1e-3)),
    (penalties.log_sum, references.log_sum, {"epsilon": 1e-30}, (1e25, -3e20, 1e-29)),
    (penalties.l1_l2, references.elastic_net, {"l1": 1.0, "l2": 1e-30}, (1e25, -3e20, 1.0)),
)


@pytest.mark.parametrize(("penalty", "reference", "options", "sizes"), LARGE_OPTIONS)
def test_extreme_options_are_right_wherever_the_answer_fits(penalty, reference, options, sizes):
    for size in sizes:  # one by one, so that none is hidden by a larger one
        x = np.array([size], np.float32)

        def exactly(points):
            return np.sum(reference(np.abs(points), **options), axis=1)

        value, gradient = jax.value_and_grad(lambda x: penalty(x, **options))(jnp.asarray(x))
        np.testing.assert_allclose(value, exactly(np.float64(x)[None])[0], rtol=2e-6, atol=1e-37, err_msg=f"{size}")
        slope = finite_differences(exactly, x, 1e-4 * np.abs(np.float64(x)))
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-37, err_msg=f"{size}")


def test_anchors_far_away_are_right_wherever_the_answer_fits():
    x, target = jnp.array([3e25]), jnp.array([1e25])
    value, gradient = jax.value_and_grad(lambda x: penalties.anchor(x, target=target, fisher=1e-30))(x)
    np.testing.assert_allclose(value, 2e20, rtol=1e-6)
    np.testing.assert_allclose(gradient, [2e-5], rtol=1e-6)


# Law 4: NaN and infinity in weights never vanish.


def spoiled(shape, place, value):
    x = np.array(sample(shape, np.float32))
    x[place] = value
    return x


def places(shape):
    """The first, a middle and the last entry."""
    every = list(np.ndindex(*shape))
    return {every[0], every[len(every) // 2], every[-1]}


@over(VARIANTS)
def test_nan_shows_in_the_value(case):
    for place in places(case.shape):
        assert np.isnan(graded(case, spoiled(case.shape, place, np.nan))[0]), place


@over(VARIANTS, lambda case: not case.flat)
def test_nan_shows_in_the_gradient(case):
    for place in places(case.shape):
        assert np.isnan(graded(case, spoiled(case.shape, place, np.nan))[1][place]), place


@over(VARIANTS, lambda case: not case.bounded)
def test_infinity_shows_in_the_value(case):
    for place in places(case.shape):
        for value in (np.inf,) if case.case.masks else (np.inf, -np.inf):
            assert not np.isfinite(graded(case, spoiled(case.shape, place, value))[0]), place


@over(VARIANTS, lambda case: case.masks)
def test_a_masked_weight_has_no_part(case):
    for place in places(case.shape):
        value, gradient = graded(case, spoiled(case.shape, place, -np.inf))
        np.testing.assert_allclose(value, case.reference_at(spoiled(case.shape, place, -1e30)), rtol=1e-6)
        assert gradient[place] == 0
        chex.assert_tree_all_finite(gradient)


@over(VARIANTS, lambda case: case.bounded)
def test_infinity_counts_as_a_large_weight_where_the_penalty_is_bounded(case):
    for place in places(case.shape):
        value, gradient = graded(case, spoiled(case.shape, place, -np.inf))
        np.testing.assert_allclose(value, case.reference_at(spoiled(case.shape, place, 1e30)), rtol=1e-6)
        assert gradient[place] == 0


# The penalties of singular values where these are equal, nearly equal or zero.

SINGULAR_VALUES = {
    "equal": [1.0, 1.0, 1.0, 1.0],
    "equal to rounding": [1.0, 1.0 + 4e-16, 1.0 - 2e-16, 1.0 + 2e-16],
    "nearly equal": [1.0, 1.0 + 1e-9, 1.0 - 1e-9, 1.0],
    "equal in pairs": [2.0, 2.0, 0.5, 0.5],
    "apart": [2.0, 1.5, 0.7, 0.3],
}


def rotations(seed=0):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(4, 4)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0]


@pytest.mark.parametrize("kind", SINGULAR_VALUES)
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_norms_of_singular_values_that_meet(kind, scale):
    """The gradient of the nuclear norm is UVᵀ, and that of the spectral norm the mean over the largest values."""
    values = np.array(SINGULAR_VALUES[kind])
    for seed in range(5):
        u, v = rotations(seed)
        x = jnp.asarray(scale * (u * values) @ v.T, jnp.float32)
        value, gradient = jax.value_and_grad(penalties.nuclear)(x)
        np.testing.assert_allclose(value, scale * values.sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient, u @ v.T, atol=2e-5)
        value, gradient = jax.value_and_grad(penalties.spectral)(x)
        np.testing.assert_allclose(value, scale * values.max(), rtol=1e-5)
        first = values > values.max() - 1e-8
        np.testing.assert_allclose(gradient, (u * first / first.sum()) @ v.T, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_norms_of_matrices_of_low_rank(scale):
    """The gradient of the nuclear norm is UVᵀ over the singular values that are not zero."""
    u, v = rotations()
    values = np.array([2.0, 1.0, 0.0, 0.0])
    x = jnp.asarray(scale * (u * values) @ v.T, jnp.float32)
    value, gradient = jax.value_and_grad(penalties.nuclear)(x)
    np.testing.assert_allclose(value, 3 * scale, rtol=1e-5)
    np.testing.assert_allclose(gradient, (u * (values > 0)) @ v.T, atol=2e-5)
    np.testing.assert_allclose(jax.grad(penalties.spectral)(x), np.outer(u[:, 0], v[:, 0]), atol=2e-5)


@pytest.mark.parametrize("kind", SINGULAR_VALUES)
def test_second_derivatives_of_the_nuclear_norm_where_singular_values_meet(kind):
    """It is smooth at matrices of full rank, so its derivative is that of UVᵀ by finite differences."""

    def polar(x):
        u, _, vt = np.linalg.svd(x)
        return u @ vt

    for seed in range(5):
        u, v = rotations(seed)
        x = (u * SINGULAR_VALUES[kind]) @ v.T
        change, step = sample((4, 4), seed=seed), 1e-5
        with jax.enable_x64(True):
            product = jax.jvp(jax.grad(penalties.nuclear), (jnp.asarray(x),), (jnp.asarray(change),))[1]
        difference = (polar(x + step * change) - polar(x - step * change)) / (2 * step)
        np.testing.assert_allclose(product, difference, rtol=1e-5, atol=1e-6)


# Regularizers: the same laws through the strengths.


@over(REGULARIZERS, lambda case: not case.flat)
def test_regularizer_value_and_gradients(case):
    x = sample(case.shape, np.float32)
    value, gradient, _ = graded_regularizer(case.make(), jnp.asarray(x))
    chex.assert_shape(value, ())
    chex.assert_type(value, jnp.float32)
    np.testing.assert_allclose(value, case.reference_at(x), rtol=2e-6)
    np.testing.assert_allclose(gradient, finite_differences(case.reference, x, 1e-6), rtol=1e-4, atol=1e-6)


@over(REGULARIZERS, lambda case: case.flat)
def test_a_regularizer_whose_gradient_would_be_zero_refuses_it(case):
    x = jnp.asarray(sample(case.shape, np.float32))
    np.testing.assert_allclose(valued(case.make(), x), case.reference_at(x), rtol=2e-6)
    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        with pytest.raises(TypeError, match="its gradient would be 0 and do nothing"):
            derivative(case.make())(x)


@functools.cache
def compiled_strengths(case, static):
    return jax.jit(jax.grad(lambda strengths, x: case.regularizer(**strengths, **dict(static))(x)))


@over(REGULARIZERS)
def test_gradient_with_respect_to_the_strengths(case):
    x = sample(case.shape, np.float32)
    names, strengths = list(case.strengths), np.array(list(case.strengths.values()))
    given = {name: jnp.float32(strength) for name, strength in case.strengths.items()}
    learned = compiled_strengths(case.case, case.variant.static)(given, jnp.asarray(x))

    def exactly(batch):
        return np.array([case.reference_at(x, **dict(zip(names, values, strict=True))) for values in batch])

    expected = finite_differences(exactly, strengths, 1e-6 * strengths)
    np.testing.assert_allclose([learned[name] for name in names], expected, rtol=1e-5)


KINDS = {
    "Python": float,
    "NumPy": np.float32,
    "float32": lambda v: jnp.asarray(v, jnp.float32),
    "bfloat16": lambda v: jnp.asarray(v, jnp.bfloat16),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def times(case, factor):
    """The strengths times a number; those that must be greater than a number are not made 0."""
    return {name: s * (factor or 3.0 * (name in case.case.above)) for name, s in case.strengths.items()}


@over(MADE)
@kinds
def test_strengths_of_every_type_without_retracing(case, kind):
    x = jnp.asarray(sample(case.shape, np.float32))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def penalty(regularizer, x):
        return regularizer(x).astype(jnp.float32)

    with jax.numpy_dtype_promotion("standard"):  # what subclasses of a user multiply with is theirs
        for factor in (1.0, 1.5, 2.0):
            strengths = {name: kind(s) for name, s in times(case, factor).items()}
            value = penalty(case.make(**strengths), x)
            exact = case.reference_at(x, **{name: float(s) for name, s in strengths.items()})
            np.testing.assert_allclose(value, exact, rtol=2e-6)


@over(MADE)
def test_strengths_are_swept_by_vmap(case):
    x = jnp.asarray(sample(case.shape, np.float32))
    chosen = [times(case, factor) for factor in (0.0, 1.0, 2.0)]
    made = [case.make(**strengths) for strengths in chosen]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *made)
    values = jax.jit(jax.vmap(lambda r: r(x)))(stacked)
    np.testing.assert_allclose(values, [r(x) for r in made], rtol=2e-6)
    np.testing.assert_allclose(values, [case.reference_at(x, **strengths) for strengths in chosen], rtol=2e-6)


@over(MAKERS)
def test_regularizer_is_an_ordinary_pytree(case):
    regularizer = case.make()
    leaves, treedef = jax.tree.flatten(regularizer)
    assert set(case.strengths.values()) <= set(leaves)
    assert jax.tree.leaves(jax.tree.map(jnp.negative, regularizer)) == [-leaf for leaf in leaves]
    hollow = treedef.unflatten([object()] * len(leaves))
    chex.assert_trees_all_equal_structs(hollow, regularizer, jax.eval_shape(lambda r: r, regularizer))
    assert jax.tree.leaves(jax.jit(lambda r: r)(regularizer)) == [jnp.float32(leaf) for leaf in leaves]
    assert hash(treedef) == hash(jax.tree.structure(case.make()))


@over(MAKERS)
def test_config_round_trip(case):
    regularizer, x = case.make(), jnp.asarray(sample(case.shape, np.float32))
    config = jaxreg.serialize(regularizer)
    assert list(config) == ["module", "class_name", "config", "registered_name"]
    again = jaxreg.deserialize(json.loads(json.dumps(config)), custom_objects=CUSTOM)
    assert repr(again) == repr(regularizer)
    chex.assert_trees_all_equal_structs(again, regularizer)
    assert jax.tree.leaves(again) == jax.tree.leaves(regularizer)
    assert valued(again, x) == valued(regularizer, x)
    again = type(regularizer).from_config(regularizer.get_config(), CUSTOM)
    assert repr(again) == repr(regularizer)


@over(MAKERS, lambda case: not case.needs_custom)
def test_a_class_reads_its_own_config(case):
    regularizer = case.make()
    assert repr(type(regularizer).from_config(regularizer.get_config())) == repr(regularizer)


@over(MAKERS, lambda case: case.needs_custom)
def test_a_config_that_names_a_function_needs_it(case):
    regularizer = case.make()
    with pytest.raises(ValueError, match=r"unknown regularizer .* must be in `custom_objects`"):
        type(regularizer).from_config(regularizer.get_config())


def with_strength(case, value):
    """The regularizer with this strength; where the options are the strengths, with this one for each of them."""
    return case.make(**dict.fromkeys(case.own or case.strengths, value))


HUGE = 1e38  # the sums of such weights overflow, and their squares too
ZEROS = {
    "Python": 0.0,
    "NumPy": np.float32(0.0),
    "NumPy array": np.zeros(()),
    "jax": jnp.zeros(()),
    "bfloat16": jnp.zeros((), jnp.bfloat16),
}


@over(MADE, lambda case: case.zero_strength)
def test_a_strength_of_zero_contributes_exactly_nothing(case):
    x = jnp.full(case.shape, HUGE, jnp.float32)
    for kind, strength in ZEROS.items():
        assert with_strength(case, strength)(x) == 0, kind
        assert valued(with_strength(case, strength), x) == 0, kind


@over(MADE, lambda case: case.zero_strength and not case.flat)
def test_a_strength_of_zero_pushes_nothing(case):
    x = jnp.full(case.shape, HUGE, jnp.float32)
    for kind, strength in ZEROS.items():
        gradient = jax.grad(with_strength(case, strength))(x)
        np.testing.assert_array_equal(gradient, np.zeros(case.shape), err_msg=kind)


@over(MADE, lambda case: case.zero_strength)
def test_a_strength_below_the_normal_numbers_gives_no_nan(case):
    x = jnp.full(case.shape, HUGE, jnp.float32)
    for kind in (float, np.float32, np.float64, jnp.float32, jnp.bfloat16):
        regularizer = with_strength(case, kind(1e-40))
        assert not np.isnan(regularizer(x)), kind
        assert not np.isnan(valued(regularizer, x)), kind


@over([made for made in MADE if made.own])
def test_a_strength_of_zero_can_be_learned(case):
    x = jnp.asarray(sample(case.shape, np.float32))
    (name,) = case.own
    slope = jax.grad(lambda strength: case.make(**{name: strength})(x))(0.0)
    np.testing.assert_allclose(slope, case.reference_at(x, **{name: 1.0}), rtol=2e-6)


@over(MADE, lambda case: case.zero_strength)
def test_stacked_strengths_are_refused_where_a_regularizer_is_called(case):
    """A strength of shape (1,) is no scalar either."""
    x = jnp.asarray(sample(case.shape, np.float32))
    for name, value in case.strengths.items():
        for stacked in (np.full((1,), value), jnp.full((1,), value), jnp.full((3,), value)):
            regularizer = case.make(**{name: stacked})
            for call in (regularizer, jax.jit(regularizer)):
                with pytest.raises(ValueError, match=r"must be a scalar.*vmap"):
                    call(x)
