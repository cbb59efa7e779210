"""Penalties of extreme singular values, from a block of vectors and without a decomposition of the matrices.

With the orthonormal block V of a matrix X, the eigenvalues of (XV)ᵀXV are estimates of squared singular values, by
Rayleigh and Ritz, and V turned by its eigenvectors has the singular vectors. Where the block spans everything they are
exact. To multiply the block by A = XᵀX − I, or by XᵀX, again and again brings it to the eigenvectors of A with the
largest |eigenvalues|. Gradients are those of the estimate with V held, and so are further derivatives.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._blocks import brought, crossed, eigh, orthonormal, outer, product, sent_back, squares, started
from jaxreg._matrix import Layout, Matrices
from jaxreg._numerics import Over, largest, nothing, sum_of
from jaxreg._products import times, times_finite
from jaxreg._shards import Names, total, varying_over
from jaxreg._spread import Unit, own_places

VECTORS = 16  # of a block, where the matrices have as many dimensions


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _chosen(gram: jax.Array, unit: jax.Array, from_identity: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the largest eigenvalue, or that which is farthest from a unit, and its eigenvector."""
    s, q = eigh(gram)
    if not from_identity:
        return s[-1], q[:, -1]
    is_above = s[-1] + s[0] >= 2 * unit
    return jnp.where(is_above, s[-1], s[0]), jnp.where(is_above, q[:, -1], q[:, 0])


@_chosen.defjvp
def _chosen_jvp(
    from_identity: bool, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The eigenvector turns to the others by the quotients of the change and the gaps, and not to those that meet."""
    (gram, unit), (change, _) = primals, tangents
    s, q = eigh(gram)
    value, vector = _chosen(gram, unit, from_identity)
    matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    pull, gaps = matmul(q.T, matmul(change, vector)), value - s
    is_met = jnp.abs(gaps) <= 16 * float(np.finfo(s.dtype).eps) * largest(s, 0)
    turn = jnp.where(is_met, jnp.zeros_like(s), pull / jnp.where(is_met, jnp.ones_like(s), gaps))
    return (value, vector), (matmul(vector, matmul(change, vector)), matmul(q, turn))


@dataclasses.dataclass(frozen=True)
class FromBlock:
    """The job of max |σ² − 1|, or of σ₁, for a device: by a given block, or by one that is multiplied so many times."""

    from_identity: bool
    steps: int = 0

    unit: ClassVar[Unit] = "parts"

    def __call__(
        self, x: jax.Array, layout: Layout, ring: Names, graded: bool, block: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        if not x.size:
            return sum_of(nothing(x)), nothing(x)
        _, rows, columns = layout.kinds
        x, factor = brought(x, layout)
        v = _begun(x, factor, layout, self.from_identity, self.steps) if block is None else _own(block, layout)
        v = lax.stop_gradient(v)
        u = product(x, v, columns.over)
        # Once the vectors of u are nearly orthogonal, the small ones are seen beside the large ones.
        turn = lax.stop_gradient(squares(u, rows.over)[1])
        u, v = product(u, turn), product(v, turn)
        # Rounding leaves v near to orthonormal. With vectors of length 1 no estimate is above the norm.
        lengths = jnp.sqrt(sum_of(jnp.square(v), Over((1,), columns.over)))
        u, v = u / lengths, v / lengths
        unit = jnp.square(1 / factor)[:, 0, 0]
        gram = crossed(u, u, rows.over)
        square, vector = jax.vmap(lambda gram, unit: _chosen(gram, unit, self.from_identity))(gram, unit)
        factors = factor[:, 0, 0]
        if self.from_identity:
            value = jnp.abs(times(square, factors, 2) - 1)
            slope = 2 * jnp.sign(square - unit)
        else:
            is_zero = square == 0
            size = jnp.sqrt(jnp.where(is_zero, jnp.ones_like(square), square))
            value = jnp.where(is_zero, jnp.zeros_like(size), factors * size)
            slope = 1 / size
        if not graded:
            return sum_of(value), None
        left, right = product(u, vector[:, :, None]), product(v, vector[:, :, None])
        gradient = times_finite(outer(slope[:, None, None] * left, right), factor, int(self.from_identity))
        return sum_of(value), sent_back(gradient, layout)


def _begun(x: jax.Array, factor: jax.Array, layout: Layout, from_identity: bool, steps: int) -> jax.Array:
    """Returns the block after some steps from the start, or one that spans everything where it has the vectors."""
    batch, _, columns = layout.kinds
    if layout.sizes[2] <= VECTORS:
        whole = jnp.eye(layout.sizes[2], dtype=x.dtype)[own_places(columns)]
        return varying_over(jnp.broadcast_to(whole, (x.shape[0], *whole.shape)), columns.over + batch.over)
    x, factor = lax.stop_gradient((x, factor))
    start = started(x, layout, VECTORS)
    return lax.fori_loop(
        0, steps, lambda _, v: _step(x, factor, v, start, layout, from_identity), orthonormal(start, columns.over)
    )


def _step(
    x: jax.Array, factor: jax.Array, v: jax.Array, start: jax.Array, layout: Layout, from_identity: bool
) -> jax.Array:
    """Returns AV, made orthonormal. Where A takes vectors to 0, those of the start take their places."""
    _, rows, columns = layout.kinds
    following = crossed(x, product(x, v, columns.over), rows.over)
    if from_identity:
        most = jnp.maximum(factor, 1)
        following = jnp.square(factor / most) * following - jnp.square(1 / most) * v
    return orthonormal(following, columns.over, instead=start)


def _own(block: jax.Array, layout: Layout) -> jax.Array:
    """Returns the part of a whole block that a device has."""
    batch, _, columns = layout.kinds
    block = block[own_places(batch)] if batch.over else block
    return block[:, own_places(columns)] if columns.over else block


def _whole(v: jax.Array, layout: Layout) -> jax.Array:
    """Returns the whole block of which devices have parts."""
    batch, _, columns = layout.kinds
    if not batch.over + columns.over:
        return v
    places = own_places(batch)[:, None], own_places(columns)[None, :]
    return total(jnp.zeros((layout.sizes[0], *layout.sizes[2:], v.shape[2]), v.dtype).at[places].set(v), layout.names)


@dataclasses.dataclass(frozen=True)
class FirstBlock:
    """The function of matrices, which may be divided, that returns their first block, whole on every device."""

    from_identity: bool
    steps: int

    def __call__(self, matrices: Matrices) -> jax.Array:
        x, layout = matrices
        return _whole(_begun(*brought(x, layout), layout, self.from_identity, self.steps), layout)


@dataclasses.dataclass(frozen=True)
class NextBlock:
    """The function of matrices and their block that returns the block of the next step, whole on every device."""

    from_identity: bool

    def __call__(self, matrices: Matrices, block: jax.Array) -> jax.Array:
        x, layout = matrices
        if layout.sizes[2] <= VECTORS:
            return block  # it spans everything
        x, factor = brought(x, layout)
        old = _own(block, layout)
        new = _step(x, factor, old, started(x, layout, VECTORS), layout, self.from_identity)
        strange = sum_of((~jnp.isfinite(new)).astype(new.dtype), Over((1, 2), layout.kinds[2].over))
        return _whole(jnp.where(strange > 0, old, new), layout)
