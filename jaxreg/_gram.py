"""Means over the Gram matrix of unit rows: |cosines| without the matrix, and squared cosines from the smaller matrix.

With the units U (n × d) and G = UUᵀ, the sum P = Σ_{i≠j} |G_ij| is ⟨U, SU⟩ and has the gradient 2SU, where S = sign(G)
off the diagonal. So a tile of G is made, its signs are multiplied by U, and it is dropped; and since G is symmetric,
the tile (i, j) serves the rows of both of its blocks. The tiles i ≤ j take n²d FLOPs and their two products 2n²d,
together 3n²d where autodiff through the matrix takes 6n²d, in memory O(nd + tile²) where it takes O(n²).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._checks import describe
from jaxreg._numerics import magnitude, sum_of, unit_rows

Precision = lax.PrecisionLike

# Measured by examples/benchmarks/gram.py on 2 cores. Up to DENSE rows, one tile of all of them takes 4n²d FLOPs, is as
# fast as several tiles, and compiles sooner. Above, smaller tiles lose time between products, and larger ones leave the
# cache.
DENSE = 1024
TILE = 512


@functools.partial(jax.jit, static_argnames=("precision", "tile"))
def mean_absolute_cosine(x: jax.Array, *, precision: Precision = None, tile: int | None = None) -> jax.Array:
    """Returns the mean of |cos(x_i, x_j)| over the pairs i ≠ j of rows of one matrix, and 0 for fewer than two rows.

    It is under `jax.jit` already, so that kernels of one shape are traced once.
    """
    n, _ = x.shape
    if n < 2:
        return jnp.zeros((), x.dtype)
    return pair_sum(x, precision, tile or (n if n <= DENSE else TILE)) / float(n * (n - 1))


def mean_squared_cosine(x: jax.Array, *, precision: Precision = None) -> jax.Array:
    """Returns the mean of cos²(x_i, x_j) over the pairs i ≠ j of rows of one matrix, minus its least possible value.

    With C = UᵀU, that is ‖C − (n/d)I‖²/(n(n−1)) on the smaller side. No large sums are subtracted.
    """
    n, d = x.shape
    if n < 2 or d == 0:
        return jnp.zeros((), x.dtype)
    units = unit_rows(x).units
    if n <= d:
        gram = jnp.matmul(units, units.T, precision=precision)
        deviation = jnp.where(jnp.eye(n, dtype=bool), jnp.zeros_like(gram), gram)
    else:
        deviation = jnp.matmul(units.T, units, precision=precision) - (n / d) * jnp.eye(d, dtype=x.dtype)
    return sum_of(jnp.square(deviation)) / float(n * (n - 1))


def over_batch(function: Callable[[jax.Array], jax.Array], matrices: jax.Array) -> jax.Array:
    """Returns the sum of a function of one matrix over a batch.

    Small matrices are faster together. Matrices of several tiles are faster one by one, and take less memory.
    """
    if len(matrices) == 1:
        return function(matrices[0])
    one_by_one = matrices.shape[1] > TILE
    return sum_of(lax.map(function, matrices) if one_by_one else jax.vmap(function)(matrices))


def check_sample(sample: Any) -> None:
    if sample is not None and (not isinstance(sample, int) or isinstance(sample, bool)):
        raise TypeError(f"`sample` must be an int or None, got {describe(sample)}")
    if sample is not None and sample < 2:
        raise ValueError(f"`sample` must be at least 2, to have a pair, got {sample}")


def random_rows(matrices: jax.Array, sample: int, key: jax.Array) -> jax.Array:
    """Returns `sample` distinct rows of each matrix, or all rows where there are no more."""
    batch, n, _ = matrices.shape
    if n <= sample:
        return matrices
    chosen = jax.vmap(lambda key: jax.random.choice(key, n, (sample,), replace=False))(jax.random.split(key, batch))
    return jnp.take_along_axis(matrices, chosen[:, :, None], axis=1)


def pair_sum_reference(x: jax.Array) -> jax.Array:
    """Returns Σ_{i≠j} |cos(x_i, x_j)|, written as the formula reads."""
    units = unit_rows(x).units
    gram = jnp.matmul(units, units.T, precision=lax.Precision.HIGHEST)
    return sum_of(jnp.where(jnp.eye(len(x), dtype=bool), jnp.zeros_like(gram), magnitude(gram)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def pair_sum(x: jax.Array, precision: Precision, tile: int) -> jax.Array:
    """Returns Σ_{i≠j} |cos(x_i, x_j)| over the rows of one matrix: `pair_sum_reference`, tile by tile.

    The subgradient of |·| at 0 is 0. Where no gradient is asked for, only the n²d FLOPs of the value are spent.
    """
    units = unit_rows(x).units
    if len(units) <= tile:
        return sum_of(jnp.abs(_own_cosines(units, precision)))
    blocks = _in_blocks(units, tile)

    def own(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        return total + sum_of(jnp.abs(_own_cosines(block, precision))), None

    def pair(total: jax.Array, ij: Any) -> tuple[jax.Array, None]:
        a, b = (_block(blocks, i) for i in ij)
        return total + 2 * sum_of(jnp.abs(_cosines(a, b, precision))), None

    total, _ = lax.scan(own, jnp.zeros((), units.dtype), blocks)
    return lax.scan(pair, total, _pairs(len(blocks)))[0]


@pair_sum.defjvp
def _pair_sum_jvp(
    precision: Precision, tile: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    rows = unit_rows(x)
    gradient, products = rows.pull_back(_signed_sums(rows.units, precision, tile))
    return sum_of(products), 2 * sum_of(gradient * change)


def _signed_sums(units: jax.Array, precision: Precision, tile: int) -> jax.Array:
    """Returns SU. Its derivative computes the tiles again instead of keeping them."""
    if len(units) <= tile:
        return _own_products(units, precision)
    blocks = _in_blocks(units, tile)
    count, size, d = blocks.shape

    def add(sums: jax.Array, i: Any, change: jax.Array) -> jax.Array:
        # Without the barrier, XLA on CPUs fuses the sum with the update and may copy all of `sums` for it;
        # it does so with the barrier too where `sums` is in blocks.
        rows = lax.dynamic_slice_in_dim(sums, i * size, size) + change
        rows = lax.optimization_barrier(rows)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
        return lax.dynamic_update_slice_in_dim(sums, rows, i * size, 0)

    @jax.checkpoint
    def own(block: jax.Array) -> jax.Array:
        return _own_products(block, precision)

    @jax.checkpoint
    def pair(sums: jax.Array, ij: Any) -> tuple[jax.Array, None]:
        i, j = ij
        first, second = signed_products(_block(blocks, i), _block(blocks, j), precision)
        return add(add(sums, i, first), j, second), None

    # Together they compile sooner than a loop, and their n × size cosines take no more memory than the rows.
    sums = jax.vmap(own)(blocks) if size <= d else lax.map(own, blocks)
    sums, _ = lax.scan(pair, sums.reshape(count * size, d), _pairs(count))
    return sums[: len(units)]


def _own_products(a: jax.Array, precision: Precision) -> jax.Array:
    """Returns the rows that a block adds to SU by the pairs within it."""
    return jnp.matmul(_signs(_own_cosines(a, precision)), a, precision=precision)


def signed_products(a: jax.Array, b: jax.Array, precision: Precision) -> tuple[jax.Array, jax.Array]:
    """Returns the rows that two blocks add to SU by the pairs between them, for the first block and for the second."""
    signs = _signs(_cosines(a, b, precision))
    # Written out, because XLA on CPUs multiplies by a transposed matrix up to twice as slowly.
    transposed = lax.optimization_barrier(signs.T)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    return jnp.matmul(signs, b, precision=precision), jnp.matmul(transposed, a, precision=precision)


def _cosines(a: jax.Array, b: jax.Array, precision: Precision) -> jax.Array:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=precision)


def _own_cosines(a: jax.Array, precision: Precision) -> jax.Array:
    """Returns the cosines within a block, with 0 for those of a row with itself."""
    cosines = _cosines(a, a, precision)
    return lax.select(jnp.eye(len(a), dtype=bool), jnp.zeros_like(cosines), cosines)


def _signs(cosines: jax.Array) -> jax.Array:
    return lax.stop_gradient(jnp.sign(cosines))


def _in_blocks(units: jax.Array, tile: int) -> jax.Array:
    """Returns the rows in blocks of one size, at most `tile`. Rows of zeros fill the last block and add nothing."""
    n, d = units.shape
    count = -(-n // tile)
    size = -(-n // count)
    return jnp.pad(units, ((0, count * size - n), (0, 0))).reshape(count, size, d)


def _block(blocks: jax.Array, i: Any) -> jax.Array:
    return lax.dynamic_index_in_dim(blocks, i, keepdims=False)


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of blocks i < j, unsigned, because JAX tests each signed index for a count from the end."""
    first, second = np.triu_indices(count, 1)
    return first.astype(np.uint32), second.astype(np.uint32)
