"""The tiled Gram kernel against NumPy in float64 at many shapes and tile sizes; frame potential."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg import _gram, penalties


def reference(x, kernel_signs=None):
    """Value and gradient of the mean |cosine| in float64; signs of cosines below 1e-6 may be given."""
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


SHAPES = [(2, 3), (7, 5), (16, 16), (33, 8), (100, 7), (130, 64)]
KINDS = ["random", "zero and repeated rows"]


@pytest.mark.parametrize("tile", [1, 3, 16, 64, 1000])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_in_float64(shape, tile, kind):
    with jax.enable_x64(True):
        x = jnp.asarray(matrix(*shape, kind))
        value, gradient = jax.jit(jax.value_and_grad(lambda x: _gram.mean_absolute_cosine(x, tile=tile)))(x)
        alone = jax.jit(lambda x: _gram.mean_absolute_cosine(x, tile=tile))(x)
    expected, slope = reference(x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(alone, expected, rtol=1e-12)
    assert np.linalg.norm(np.asarray(gradient) - slope) <= 1e-12 * max(np.linalg.norm(slope), 1.0)


@pytest.mark.parametrize("shape", [(64, 32), (700, 48), (1100, 20)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [256, _gram.TILE])
def test_tiles_in_float32(shape, kind, tile):
    x = matrix(*shape, kind).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: _gram.mean_absolute_cosine(x, tile=tile)))(x)
    units = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-7))
    expected, slope = reference(x, np.sign(units @ units.T - np.diag(np.diag(units @ units.T))))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # A cosine below float32's rounding may have either sign; each such pair is worth 2/(n(n-1)) of a unit row.
    flips = np.sum(np.abs(units @ units.T) < 1e-6)
    allowed = 1e-5 * np.linalg.norm(slope) + 4 * flips / (len(x) * (len(x) - 1)) / np.linalg.norm(x, axis=1).mean()
    assert np.linalg.norm(np.asarray(gradient) - slope) <= allowed


@pytest.mark.parametrize("shape", [(40, 12), (9, 30)], ids=str)
def test_the_readable_reference_is_the_same_function(shape):
    x = jnp.asarray(matrix(*shape), jnp.float32)
    fast = jax.value_and_grad(lambda x: _gram.pair_sum(x, None, 16))(x)
    plain = jax.value_and_grad(_gram.pair_sum_reference)(x)
    np.testing.assert_allclose(fast[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(fast[1], plain[1], rtol=1e-4, atol=1e-5)


def dots(function, x):
    """How often each dot_general of a traced function runs, through its scans, with its shapes and precision."""
    found = []

    def walk(jaxpr, times):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append((times, equation))
            inner_times = times * equation.params["length"] if equation.primitive.name == "scan" else times
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner, inner_times)

    walk(jax.make_jaxpr(function)(x).jaxpr, 1)
    return found


def flops(function, x):
    total = 0
    for times, equation in dots(function, x):
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
        total += 2 * times * int(inner) * int(np.prod(equation.outvars[0].aval.shape))
    return total


@pytest.mark.parametrize(("n", "d"), [(4096, 64), (2048, _gram.TILE)])
def test_flops_and_memory_are_what_is_promised(n, d):
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    tiles = n / _gram.TILE
    gradient = jax.grad(lambda x: _gram.mean_absolute_cosine(x))
    assert flops(gradient, x) == (3 + 1 / tiles) * n * n * d  # the tiles on the diagonal take 4 in place of 3
    assert flops(lambda x: _gram.mean_absolute_cosine(x), x) == (1 + 1 / tiles) * n * n * d
    dense = flops(jax.grad(_gram.pair_sum_reference), x)
    assert dense == 6 * n * n * d
    temporary = jax.jit(gradient).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * (6 * n * d + 6 * _gram.TILE**2)
    plain = jax.jit(jax.grad(_gram.pair_sum_reference)).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert plain > 4 * n * n


def test_hessian_products_keep_no_tiles():
    """Forward over reverse, and reverse over forward; reverse over reverse keeps the signs."""
    n, d = 2048, 16
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)

    def forward_over_reverse(x):
        return jax.jvp(jax.grad(_gram.mean_absolute_cosine), (x,), (x,))[1]

    def reverse_over_forward(x):
        return jax.grad(lambda x: jax.jvp(_gram.mean_absolute_cosine, (x,), (jnp.ones_like(x),))[1])(x)

    for product in (forward_over_reverse, reverse_over_forward):
        temporary = jax.jit(product).lower(x).compile().memory_analysis().temp_size_in_bytes
        assert temporary < 4 * n * n / 3


@pytest.mark.parametrize("precision", [None, "highest", jax.lax.Precision.HIGH, "bfloat16"])
@pytest.mark.parametrize("penalty", [penalties.orthogonal, penalties.frame_potential])
def test_precision_reaches_every_product(precision, penalty):
    x = jnp.asarray(matrix(20, 6), jnp.float32)
    wanted = {str(e.params["precision"]) for _, e in dots(lambda x: jnp.matmul(x, x.T, precision=precision), x)}
    found = dots(jax.grad(lambda x: penalty(x, precision=precision)), x)
    assert found
    assert {str(equation.params["precision"]) for _, equation in found} == wanted


@pytest.mark.parametrize("n", [_gram.DENSE + 1, 2 * _gram.DENSE])
def test_precision_reaches_every_product_of_the_tiles(n):
    """Small arrays are one tile; these have several, whose products are others."""
    x = jax.ShapeDtypeStruct((n, 6), jnp.float32)
    wanted = str((jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST))

    def value(x):
        return penalties.orthogonal(x, precision="highest")

    def product(x):
        return jax.jvp(jax.grad(value), (x,), (x,))[1]

    # The value makes the tiles on and off the diagonal; the gradient multiplies the first once and the others twice.
    for function, at_least in ((value, 2), (jax.grad(value), 5), (product, 10)):
        found = dots(function, x)
        assert len(found) >= at_least
        assert {str(equation.params["precision"]) for _, equation in found} == {wanted}


def test_default_precision_follows_jax():
    x = jnp.asarray(matrix(20, 6), jnp.float32)
    with jax.default_matmul_precision("highest"):
        found = dots(jax.grad(penalties.orthogonal), x)
    assert all("HIGHEST" in str(equation.params["precision"]) for _, equation in found)


def test_remat():
    x = jnp.asarray(matrix(20, 6), jnp.float32)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(penalties.orthogonal))(x), jax.grad(penalties.orthogonal)(x))


def test_large_batches_go_one_by_one_to_the_same_sum():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, _gram.TILE + 9, 4)), jnp.float32)
    together = jax.grad(lambda x: penalties.orthogonal(x, batch_axis=0))(x)
    apart = jnp.stack([jax.grad(penalties.orthogonal)(part) for part in x])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-8)


def test_memory_of_a_batch_of_large_matrices():
    """They go one by one, so that a batch takes little more memory than one of them."""
    n, d = 2 * _gram.DENSE, 16
    for function in (penalties.orthogonal, jax.grad(lambda x: penalties.orthogonal(x, batch_axis=0))):
        batched = functools.partial(function, batch_axis=0) if function is penalties.orthogonal else function
        x = jax.ShapeDtypeStruct((6, n, d), jnp.float32)
        temporary = jax.jit(batched).lower(x).compile().memory_analysis().temp_size_in_bytes
        # The whole batch, and what one matrix takes by `test_flops_and_memory_are_what_is_promised`.
        assert temporary < 4 * (2 * 6 * n * d + 6 * n * d + 6 * _gram.TILE**2)


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
