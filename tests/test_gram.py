"""The pass over a Gram matrix against NumPy in float64, by every plan on both axes; its costs; frame potential."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxreg
from jaxreg import _angles, _gram, penalties
from jaxreg._plans import TABLE, Plan, plan_for

FOURTH = _gram.Element(lambda c: c**4, lambda c: 4 * c**3)  # without a degree, so that the value is added up


def mean(x, plan=None, axis=0, element=_gram.ABSOLUTE):
    return _gram.mean_over_pairs(x, axis, element, plan=plan)


def reference(x, kernel_signs=None):
    """Value and gradient of the mean |cosine| of rows in float64; signs of cosines below 1e-6 may be given."""
    x = np.asarray(x, np.float64)
    n = len(x)
    norms = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-7)
    units = x / norms
    gram = units @ units.T
    np.fill_diagonal(gram, 0.0)
    signs = np.sign(gram)
    if kernel_signs is not None:
        signs = np.where(np.abs(gram) < 1e-6, kernel_signs, signs)
    sums = 2 * signs @ units / (n * (n - 1))
    along = np.where(norms > 1e-7, np.sum(units * sums, axis=1, keepdims=True), 0.0)
    return np.abs(gram).sum() / (n * (n - 1)), (sums - units * along) / norms


def matrix(n, d, kind="random"):
    x = np.random.default_rng([n, d]).normal(size=(n, d))
    if kind == "zero and repeated rows":
        x[n // 2] = 0.0
        x[-1] = x[0]
    return x


SHAPES = [(2, 3), (16, 16), (33, 8), (100, 7), (130, 64)]
KINDS = ["random", "zero and repeated rows"]
PLANS = {
    "blocks of 1": Plan(1),
    "blocks of 3": Plan(3, written_out=True),
    "blocks of 16": Plan(16, scaling="steps"),
    "panels of 3": Plan(3, wide=True, written_out=True),
    "panels of 16": Plan(16, wide=True, scaling="sums"),
    "three blocks": Plan(50),
    "three blocks alone": Plan(50, alone=True),
    "dense": Plan(1000),
    "dense and alone": Plan(1000, alone=True),
    "dense in sums": Plan(1000, scaling="sums"),
    "dense in steps": Plan(1000, scaling="steps"),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_plan_in_float64(shape, plan, axis):
    kind = KINDS[shape[0] > 40]
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(*shape, kind))
        x = x if axis == 0 else x.T
        value, gradient = jax.value_and_grad(mean)(x, plan, axis)
        alone = mean(x, plan, axis)
    expected, slope = reference(matrix(*shape, kind))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(alone, expected, rtol=1e-12)
    gradient = np.asarray(gradient if axis == 0 else gradient.T)
    assert np.linalg.norm(gradient - slope) <= 1e-12 * max(np.linalg.norm(slope), 1.0)


def slope_of_fourth(x):
    """Value and gradient of the mean of cos⁴ between rows."""
    n, norms = len(x), np.linalg.norm(x, axis=1, keepdims=True)
    units = x / norms
    gram = units @ units.T
    np.fill_diagonal(gram, 0.0)
    sums = 8 * gram**3 @ units / (n * (n - 1))
    return np.sum(gram**4) / (n * (n - 1)), (sums - units * np.sum(units * sums, 1, keepdims=True)) / norms


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_any_element_function(plan, axis):
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(33, 8))
        x = x if axis == 0 else x.T
        value, gradient = jax.value_and_grad(mean)(x, plan, axis, FOURTH)
        alone = mean(x, plan, axis, FOURTH)
    expected, slope = slope_of_fourth(matrix(33, 8))
    np.testing.assert_allclose([value, alone], expected, rtol=1e-12)
    np.testing.assert_allclose(gradient if axis == 0 else gradient.T, slope, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("plan", [PLANS["blocks of 3"], PLANS["panels of 3"], PLANS["dense"]], ids=str)
def test_sums_of_vectors_that_are_not_normalised(plan):
    """Σ_{i≠j} ⟨x_i, x_j⟩⁴, whose second derivative goes through the pass too."""
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(10, 4))

        def plain(x):
            gram = x @ x.T
            return jnp.sum(gram**4) - jnp.sum(jnp.diagonal(gram) ** 4)

        def ours(x):
            return _gram.gram_sum(x, 0, FOURTH, None, plan)

        np.testing.assert_allclose(ours(x), plain(x), rtol=1e-12)
        np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(plain)(x), rtol=1e-11)
        np.testing.assert_allclose(jax.hessian(ours)(x), jax.hessian(plain)(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 32), (300, 400), (700, 48), (1100, 20), (2100, 16)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_float32(shape, kind, mode):
    """By the plan that the platform takes for the shape."""
    x = matrix(*shape, kind).astype(np.float32)
    seen = jnp.asarray(x if mode == "rows" else x.T)
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(penalties.orthogonal, mode=mode)))(seen)
    units = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-7))
    expected, slope = reference(x, np.sign(units @ units.T - np.diag(np.diag(units @ units.T))))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # A cosine below float32's rounding may have either sign; each such pair is worth 2/(n(n-1)) of a unit row.
    flips = np.sum(np.abs(units @ units.T) < 1e-6)
    allowed = 1e-5 * np.linalg.norm(slope) + 4 * flips / (len(x) * (len(x) - 1)) / np.linalg.norm(x, axis=1).mean()
    assert np.linalg.norm(np.asarray(gradient if mode == "rows" else gradient.T) - slope) <= allowed


@pytest.mark.parametrize("scaling", ["largest", "steps", "sums"])
@pytest.mark.parametrize("size", [1000, 4], ids=["dense", "blocks"])
def test_vectors_of_every_magnitude_side_by_side(scaling, size):
    """A vector counts by its direction alone, if it is longer than 1e-7."""
    x = matrix(11, 6)
    scales = np.array([1e30, 1e-6, 1.0, 1e38, 1e12, 1e-5, 3e13, 1e25, 1e8, 1e-3, 1e19])[:, None]
    plan = Plan(size, scaling=scaling)
    expected, slope = reference(x)
    for axis in (0, 1):
        scaled = jnp.asarray((x / np.abs(x).max(1, keepdims=True) * scales).astype(np.float32))
        value, gradient = jax.value_and_grad(mean)(scaled if axis == 0 else scaled.T, plan, axis)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        times = np.asarray(gradient if axis == 0 else gradient.T, np.float64) * scales
        # Below the least normal number a gradient may be 0.
        fits = scales[:, 0] < 1e37
        slopes = slope * np.abs(x).max(1, keepdims=True)
        np.testing.assert_allclose(times[fits], slopes[fits], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scaling", ["largest", "steps", "sums"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("size", [1000, 4], ids=["dense", "blocks"])
def test_nan_and_infinity_show_by_every_plan(scaling, bad, size):
    x = jnp.asarray(matrix(11, 6), jnp.float32).at[4, 2].set(bad)
    value, gradient = jax.value_and_grad(mean)(x, Plan(size, scaling=scaling))
    assert jnp.isnan(value)
    assert jnp.isnan(gradient[4]).all()


@pytest.mark.parametrize("shape", [(40, 12), (9, 30)], ids=str)
@pytest.mark.parametrize("plan", [PLANS["blocks of 16"], PLANS["panels of 3"], PLANS["dense"]], ids=str)
def test_the_readable_reference_is_the_same_function(shape, plan):
    x = jnp.asarray(matrix(*shape), jnp.float32)
    pairs = shape[0] * (shape[0] - 1)
    fast = jax.value_and_grad(mean)(x, plan)
    plain = jax.value_and_grad(lambda x: _gram.pair_sum_reference(x) / pairs)(x)
    np.testing.assert_allclose(fast[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(fast[1], plain[1], rtol=1e-4, atol=1e-7)


# What it costs.


def equations(function, *args):
    """The equations of a traced function with how often each runs, through its scans."""
    found = []

    def walk(jaxpr, times):
        for equation in jaxpr.eqns:
            found.append((times, equation))
            inner_times = times * equation.params["length"] if equation.primitive.name == "scan" else times
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner, inner_times)

    walk(jax.make_jaxpr(function)(*args).jaxpr, 1)
    return found


def dots(function, x):
    return [(times, e) for times, e in equations(function, x) if e.primitive.name == "dot_general"]


def flops(function, x):
    total = 0
    for times, equation in dots(function, x):
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
        total += 2 * times * int(inner) * int(np.prod(equation.outvars[0].aval.shape))
    return total


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("platform", "n", "d", "gradient", "value"),
    [
        ("cpu", 768, 768, 4, 2),
        ("cpu", 512, 64, 4, 2),
        ("cpu", 768, 64, 3 + 1 / 3, 1 + 1 / 3),
        ("cpu", 1536, 512, 3 + 1 / 3, 1 + 1 / 3),
        ("cpu", 3072, 64, 3 + 1 / 4, 1 + 1 / 4),
        ("cpu", 4096, 64, 3 + 1 / 8, 1 + 1 / 8),
        ("tpu", 4096, 64, 4, 2),
        ("tpu", 9 * 2048, 64, 3 + 1 / 9, 1 + 1 / 9),
        ("cuda", 9 * 2048, 64, 3 + 1 / 9, 1 + 1 / 9),
    ],
)
def test_flops_are_what_is_promised(platform, n, d, gradient, value, axis):
    x = jax.ShapeDtypeStruct((n, d) if axis == 0 else (d, n), jnp.float32)
    plan = plan_for(platform, n, d, jnp.float32)
    assert flops(jax.grad(lambda x: mean(x, plan, axis)), x) == pytest.approx(gradient * n * n * d, rel=1e-12)
    assert flops(lambda x: mean(x, plan, axis), x) == pytest.approx(value * n * n * d, rel=1e-12)
    assert flops(jax.grad(_gram.pair_sum_reference), x) == 6 * n * n * d or axis


def test_panels_take_as_many_iterations_as_there_are_blocks():
    plan = plan_for("tpu", 20_000, 64, jnp.float32)
    x = jax.ShapeDtypeStruct((20_000, 64), jnp.float32)
    lengths = [
        e.params["length"] for _, e in equations(jax.grad(lambda x: mean(x, plan)), x) if e.primitive.name == "scan"
    ]
    assert lengths == [11]


def test_a_panel_takes_no_more_memory_than_the_table_says():
    for platform in ("cuda", "tpu"):
        for n in (5_000, 65_536, 300_000):
            plan = plan_for(platform, n, 64, jnp.float32)
            assert plan.wide
            assert plan.size * n // 2 <= 2**26
            assert plan.size % 128 == 0


@pytest.mark.parametrize(
    ("shape", "mode", "options"),
    [
        ((64, 32), "columns", {}),
        ((64, 32), "rows", {}),
        ((32, 64), "columns", {"out_axis": 0}),
        ((3, 3, 16, 32), "columns", {}),
        ((3, 3, 16, 32), "rows", {}),
        ((64, 4, 8), "columns", {"out_axis": (1, 2)}),
        ((4, 64, 32), "columns", {"batch_axis": 0}),
        ((3000, 4), "rows", {}),
        ((4, 3000), "columns", {}),
        ((3, 4, 600), "columns", {"batch_axis": 0}),
    ],
    ids=str,
)
def test_no_kernel_is_transposed(shape, mode, options):
    """The vectors are contracted along the axis on which they lie."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    for penalty in (penalties.orthogonal, penalties.frame_potential):
        gradient = jax.grad(functools.partial(penalty, mode=mode, **options))
        for _, equation in equations(gradient, x):
            if equation.primitive.name == "transpose":
                (before,) = (v.aval.shape for v in equation.invars)
                order = [axis for axis in equation.params["permutation"] if before[axis] > 1]
                # A panel of products may be transposed, for XLA on CPUs.
                assert order == sorted(order) or np.prod(before) != x.size


def temporaries(function, x):
    return jax.jit(function).lower(x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("n", "d", "tiles"),
    [(1024, 1024, 8), (2048, 2048, 30), (4096, 1024, 24), (8192, 256, 12.1), (16384, 128, 11.6)],
)
@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_memory_is_what_is_promised(n, d, tiles, mode):
    """The bounds are the MiB that a kernel of tiles took for rows, and half as much again."""
    x = jax.ShapeDtypeStruct((n, d) if mode == "rows" else (d, n), jnp.float32)
    pass_over = jax.value_and_grad(functools.partial(penalties.orthogonal, mode=mode))
    assert temporaries(pass_over, x) < 1.5 * 2**20 * tiles


def test_temporaries_do_not_grow_with_the_number_of_kernels():
    """Each pass is computed as a whole, so that all of them take little more memory than one."""
    kernels = {str(i): jax.ShapeDtypeStruct((256, 256), jnp.float32) for i in range(20)}
    rules = jaxreg.Rules((r".", jaxreg.OrthogonalRegularizer(1.0, "columns")))
    assert temporaries(jax.value_and_grad(rules), kernels) < 4 * 4 * 256 * 256


def test_no_matrix_of_all_cosines_is_made():
    n, d = 8192, 32
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    assert temporaries(jax.grad(_gram.pair_sum_reference), x) > 4 * n * n
    for platform in ("cuda", "tpu"):
        plan = plan_for(platform, n, d, jnp.float32)
        assert temporaries(jax.grad(functools.partial(mean, plan=plan)), x) < 4 * n * n
    assert temporaries(jaxreg.diagnostics.mutual_coherence, x) < 4 * n * n / 4


def test_hessian_products_keep_no_tiles():
    """Forward over reverse, and reverse over forward; reverse over reverse keeps the signs."""
    n, d = 4096, 16
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)

    def forward_over_reverse(x):
        return jax.jvp(jax.grad(mean), (x,), (x,))[1]

    def reverse_over_forward(x):
        return jax.grad(lambda x: jax.jvp(mean, (x,), (jnp.ones_like(x),))[1])(x)

    for product in (forward_over_reverse, reverse_over_forward):
        assert temporaries(product, x) < 4 * n * n / 3


def test_large_batches_go_one_by_one_to_the_same_sum():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, _angles.ONE_BY_ONE + 9, 4)), jnp.float32)
    for axis in (0, 1):
        moved = jnp.moveaxis(x, 0, axis)
        together = jax.grad(functools.partial(penalties.orthogonal, batch_axis=axis))(moved)
        apart = jnp.stack([jax.grad(penalties.orthogonal)(part) for part in x], axis)
        np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-8)


def test_memory_of_a_batch_of_large_matrices():
    """They go one by one, so that a batch takes little more memory than one of them."""
    n, d, tile = 4096, 16, 512
    for function in (penalties.orthogonal, jax.grad(lambda x: penalties.orthogonal(x, batch_axis=0))):
        batched = functools.partial(function, batch_axis=0) if function is penalties.orthogonal else function
        x = jax.ShapeDtypeStruct((6, n, d), jnp.float32)
        assert temporaries(batched, x) < 4 * (2 * 6 * n * d + 6 * n * d + 6 * tile**2)


# Precision.


@pytest.mark.parametrize("precision", [None, "highest", lax.Precision.HIGH, "bfloat16", ("high", "high")])
@pytest.mark.parametrize("penalty", [penalties.orthogonal, penalties.frame_potential])
@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (800, 6), (2100, 6)], ids=str)
def test_precision_reaches_every_product(precision, penalty, shape):
    """Small arrays are dense, large ones go by blocks, and those of frame potential may be components."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    wanted = {str(e.params["precision"]) for _, e in dots(lambda x: jnp.matmul(x, x.T, precision=precision), x)}

    def value(x):
        return penalty(x, precision=precision)

    for function in (value, jax.grad(value), lambda x: jax.jvp(jax.grad(value), (x,), (x,))[1]):
        found = dots(function, x)
        assert found
        assert {str(equation.params["precision"]) for _, equation in found} == wanted


def test_default_precision_follows_jax():
    x = jnp.asarray(matrix(20, 6), jnp.float32)
    with jax.default_matmul_precision("highest"):
        found = dots(jax.grad(penalties.orthogonal), x)
    assert all("HIGHEST" in str(equation.params["precision"]) for _, equation in found)


@pytest.mark.parametrize("precision", ["cosine", 7, ("highest",), "fast"])
def test_no_other_precision(precision):
    for make in (
        lambda: jaxreg.OrthogonalRegularizer(precision=precision),
        lambda: jaxreg.FramePotential(precision=precision),
        lambda: penalties.orthogonal(jnp.eye(3), precision=precision),
        lambda: penalties.frame_potential(jnp.eye(3), precision=precision),
    ):
        with pytest.raises(ValueError, match=r"`precision` must be a precision as in .*, 'cosines' or None, got"):
            make()


def as_on_a_tpu(monkeypatch):
    """Rounds the factors of each product to bfloat16 unless it is "highest", as a TPU does; CPUs do not."""
    exact = lax.dot_general

    def rounded(a, b, *args, precision=None, **options):
        if precision in (None, lax.Precision.DEFAULT):
            a, b = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (a, b))
        return exact(a, b, *args, precision=precision, **options)

    monkeypatch.setattr(_gram.lax, "dot_general", rounded)
    jax.clear_caches()


@pytest.mark.parametrize("n", [600, 4500], ids=["dense", "panels"])
@pytest.mark.parametrize(
    ("dtype", "precision", "least", "most"),
    [
        ("float32", None, 0.02, 0.08),
        ("float32", "cosines", 0.0005, 0.002),
        ("float32", "highest", 0.0, 0.001),
        ("bfloat16", None, 0.0005, 0.002),
        ("bfloat16", "cosines", 0.0005, 0.002),
        ("bfloat16", "highest", 0.0, 0.001),
    ],
)
def test_precision_on_an_accelerator(monkeypatch, n, dtype, precision, least, most):
    """The error of the gradient in norm. By default the products of float32 are those of rounded numbers, and their
    signs flip; the signs of bfloat16 weights are exact, and so are all of them under "cosines".
    """
    as_on_a_tpu(monkeypatch)
    d = 256 if n == 600 else 64
    x = jnp.asarray(matrix(n, d), dtype)
    plan = plan_for("tpu", n, d, x.dtype, precision)
    _, found = _gram.of_cosines(0, _gram.ABSOLUTE, True, plan, x)
    slope = reference(np.asarray(x, np.float64))[1]
    error = np.linalg.norm(np.asarray(found) - slope) / np.linalg.norm(slope)
    assert least <= error <= most


def test_cosines_are_exact_on_each_platform_in_its_way():
    for platform, sizes in TABLE.items():
        for dtype in (jnp.float32, jnp.float16):
            plan = plan_for(platform, 100, 50, dtype, "cosines")
            assert (plan.cosines, plan.sums) == (sizes.exact, lax.Precision.DEFAULT)
        assert plan_for(platform, 100, 50, jnp.float64, "cosines").sums == lax.Precision.HIGHEST
        raw = plan_for(platform, 100, 50, jnp.bfloat16, "cosines")
        assert raw.raw == (platform != "cpu")
        assert raw.cosines is (None if raw.raw else sizes.exact)
        with jax.default_matmul_precision("highest"):
            assert not plan_for(platform, 100, 50, jnp.bfloat16).raw


@pytest.mark.parametrize("shape", [(64, 32), (5000, 16)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", [None, "cosines", "highest"])
@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_each_platform_lowers_its_own_plan(shape, dtype, precision, mode):
    x = jax.ShapeDtypeStruct(shape if mode == "rows" else shape[::-1], dtype)
    gradient = jax.jit(jax.grad(functools.partial(penalties.orthogonal, mode=mode, precision=precision)))
    text = {p: jax.export.export(gradient, platforms=[p])(x).mlir_module() for p in ("cpu", "cuda", "tpu")}
    panels = ["tensor<1667x" in text[p] for p in ("cpu", "cuda", "tpu")]
    assert panels == [False, *[shape[0] == 5000] * 2]
    products = {p: [line for line in text[p].splitlines() if "dot_general" in line] for p in text}
    bfloat16 = {p: any(line.count("bf16>") >= 2 for line in products[p]) for p in products}
    raw = dtype == "bfloat16" and precision != "highest"
    assert bfloat16 == {"cpu": False, "cuda": raw, "tpu": raw}
    six = {p: "num_primitive_operations = 6" in text[p] for p in text}
    assert six == {"cpu": False, "cuda": dtype == "float32" and precision == "cosines", "tpu": False}


def test_remat():
    x = jnp.asarray(matrix(20, 6), jnp.float32)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(penalties.orthogonal))(x), jax.grad(penalties.orthogonal)(x))


def test_every_plan_has_a_reason():
    """Each field of a plan is taken by some platform, and each platform's sizes are used."""
    made = [
        plan_for(platform, n, d, dtype, precision)
        for platform in TABLE
        for n, d in ((64, 64), (700, 64), (3000, 64), (6000, 64))
        for dtype in (jnp.float32, jnp.bfloat16)
        for precision in (None, "cosines")
    ]
    for field in set(inspect.signature(Plan).parameters) - {"size"}:
        assert len({getattr(plan, field) for plan in made}) > 1, field


# Frame potential: gradient descent reaches tight frames, whose excess is 0.


@pytest.mark.parametrize(("n", "d"), [(6, 3), (16, 6), (7, 3), (5, 8)])
def test_frame_potential_descends_to_a_tight_frame(n, d):
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(n, d))
        rate = 0.2 * n * (n - 1) / max(n / d, 1.0)

        @jax.jit
        def descend(x):
            def step(x, _):
                x = x - rate * jax.grad(penalties.frame_potential)(x)
                return x / jnp.linalg.norm(x, axis=1, keepdims=True), None

            return jax.lax.scan(step, x, length=20_000)[0]

        frame = np.asarray(descend(x))
        excess = float(penalties.frame_potential(frame))
    assert excess < 1e-12
    total = np.sum((frame @ frame.T) ** 2)
    np.testing.assert_allclose(total, max(n, n * n / d), rtol=1e-6)


def test_frame_potential_is_exact_at_its_minimum_in_float32():
    frame = jnp.tile(jnp.eye(8), (512, 1))  # 4096 rows, every pair of 8 dimensions evenly used
    assert penalties.frame_potential(frame) == 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(20, 33), (33, 20)], ids=str)
@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_frame_potential_by_every_plan(shape, plan, axis):
    n, d = shape
    x = matrix(n, d)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    excess = units.T @ units - n / d * np.eye(d) if n > d else units @ units.T - np.eye(n)
    sums = 4 * (units @ excess if n > d else excess @ units) / (n * (n - 1))
    slope = (sums - units * np.sum(units * sums, 1, keepdims=True)) / np.linalg.norm(x, axis=1, keepdims=True)
    with jax.enable_x64(True):
        seen = jnp.asarray(x if axis == 0 else x.T)
        value, gradient = jax.value_and_grad(lambda x: _gram.frame_excess(x, axis, plan=plan))(seen)
    np.testing.assert_allclose(value, np.sum(excess**2) / (n * (n - 1)), rtol=1e-12)
    np.testing.assert_allclose(gradient if axis == 0 else gradient.T, slope, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("n", "d"), [(4096, 32), (32, 4096), (600, 600)])
def test_flops_of_frame_potential(n, d):
    """4nd·min(n, d), of the smaller Gram matrix, where autodiff takes 6."""
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    plan = plan_for("cpu", n, d, jnp.float32)
    assert flops(jax.grad(lambda x: _gram.frame_excess(x, 0, plan=plan)), x) == 4 * n * d * min(n, d)
