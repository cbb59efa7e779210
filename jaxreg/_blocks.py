"""Blocks of a few vectors, which matrices are multiplied by again and again, where matrices may be divided over a mesh.

A block is an array (matrices, components, vectors). Where components are divided, a device has its part of each vector.
Only products with a block are added up over devices, so no matrix is moved.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._matrix import Layout
from jaxreg._numerics import Over, for_lapack, near_one_exactly
from jaxreg._shards import Names, total, varying_over
from jaxreg._spread import own_places


def brought(x: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Returns matrices as an array (matrices, rows, components), of magnitudes below 2, and the factors taken out."""
    _, rows, columns = layout.kinds
    x = x.transpose(_order(layout))
    return near_one_exactly(x, Over((1, 2), rows.over + columns.over))


def sent_back(x: jax.Array, layout: Layout) -> jax.Array:
    """Returns an array as `brought` returns it in the order that it came in."""
    return x.transpose(np.argsort(_order(layout)).tolist())


def _order(layout: Layout) -> tuple[int, int, int]:
    return layout.batch, layout.vectors, layout.components


def product(a: jax.Array, b: jax.Array, over: Names = ()) -> jax.Array:
    """Returns ab, added up over the devices that divide the columns of `a`."""
    return total(_dot(a, b, 2, 1), over)


def crossed(a: jax.Array, b: jax.Array, over: Names = ()) -> jax.Array:
    """Returns aᵀb, added up over the devices that divide the rows."""
    return total(jnp.swapaxes(_dot(b, a, 1, 1), 1, 2), over)  # a block is turned, where XLA would turn the matrices


def _dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((of_a,), (of_b,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns abᵀ."""
    return _dot(a, b, 2, 2)


def eigh(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues of symmetric matrices, in ascending order, and the eigenvectors, NaN for a NaN."""
    s, q = jnp.linalg.eigh(for_lapack(gram))
    return s, q


def squares(v: jax.Array, over: Names) -> tuple[jax.Array, jax.Array]:
    """Returns the squares of the singular values of a block, in ascending order, and its right singular vectors."""
    s, q = eigh(crossed(v, v, over))
    return s[:, None, :], q


def orthonormal(v: jax.Array, over: Names, instead: jax.Array | None = None) -> jax.Array:
    """Returns a block with orthonormal vectors that span the same.

    Where vectors depend on each other, some become zeros. Given a block `instead`, vectors of that take their places.
    """
    rounding = 64 * float(np.finfo(v.dtype).eps)  # of products that should be 0
    for is_first in (True, False):  # once loses half of the digits
        s, q = squares(v, over)
        is_there = ~(s <= rounding * s[:, :, -1:])  # a NaN shows
        v = product(v, jnp.where(is_there, q / jnp.sqrt(jnp.where(is_there, s, jnp.ones_like(s))), jnp.zeros_like(q)))
        if is_first and instead is not None:
            v = jnp.where(is_there, v, instead)
    return v


def started(x: jax.Array, layout: Layout, count: int) -> jax.Array:
    """Returns the block that iterations start from, for matrices as `brought` returns them: the same random vectors.

    Their lengths are about 1.
    """
    batch, _, columns = layout.kinds
    start = jax.random.normal(jax.random.key(0), (layout.sizes[2], count), x.dtype)[own_places(columns)]
    start = start / float(np.sqrt(layout.sizes[2]))
    return varying_over(jnp.broadcast_to(start, (x.shape[0], *start.shape)), columns.over + batch.over)
