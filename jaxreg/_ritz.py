"""Penalties of extreme singular values, from a block of vectors and without a decomposition of the matrices.

With the orthonormal block V of a matrix X, the eigenvalues of (XV)ᵀXV are estimates of squared singular values, by
Rayleigh and Ritz, and V turned by its eigenvectors has the singular vectors. Where the block spans everything they are
exact. To multiply the block by A = XᵀX − I, or by XᵀX, again and again brings it to the eigenvectors of A with the
largest |eigenvalues|. Gradients are those of the estimate with V held, and so are further derivatives.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._blocks import brought, orthonormal, outer, product, sent_back, squares, started
from jaxreg._matrix import Layout, Matrices
from jaxreg._numerics import Over, largest, nothing, sum_of
from jaxreg._products import times, times_finite
from jaxreg._shards import Names, total, varying_over
from jaxreg._spread import Unit, own_places

VECTORS = 16  # of a block, where the matrices have as many dimensions

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class Measure(NamedTuple):
    """What is measured.

    Attributes:
      choice: the function of squared singular values in ascending order, and of what is 1 beside them, that gives the
        one to measure.
      from_identity: whether the distance of its square from 1 is measured, and A is XᵀX − I; else it itself, and XᵀX.
    """

    choice: Callable[[jax.Array, jax.Array], jax.Array]
    from_identity: bool

    def of(self, square: jax.Array, factor: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Returns the value, and what XVPVᵀ is multiplied by in the gradient: a number, and a power of the factor."""
        if self.from_identity:
            return jnp.abs(times(square, factor, 2) - 1), 2 * jnp.sign(square - unit), 1
        is_zero = square == 0
        size = jnp.sqrt(jnp.where(is_zero, jnp.ones_like(square), square))
        zero = jnp.zeros_like(size)
        return jnp.where(is_zero, zero, factor * size), jnp.where(is_zero, zero, 1 / size), 0


def _last(s: jax.Array, unit: jax.Array) -> jax.Array:
    return s[-1:]


def _farthest(s: jax.Array, unit: jax.Array) -> jax.Array:
    return jnp.where(s[-1:] + s[:1] >= 2 * unit, s[-1:], s[:1])


LARGEST = Measure(_last, from_identity=False)  # σ₁
FARTHEST = Measure(_farthest, from_identity=True)  # max |σ² − 1|


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _chosen(measure: Measure, gram: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalue that is measured, and the projection on its eigenvectors, in equal parts."""
    s, q, share = _shares(measure, gram, unit)
    return sum_of(share * s, 0), _matmul(q * share[None, :], q.T)


@_chosen.defjvp
def _chosen_jvp(
    measure: Measure, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Eigenvectors turn by the quotients of the change and the gaps. Those that share in equal parts are not told."""
    (gram, unit), (change, _) = primals, tangents
    s, q, share = _shares(measure, gram, unit)
    inner = _matmul(_matmul(q.T, change), q)
    jumps, gaps = share[:, None] - share[None, :], s[:, None] - s[None, :]
    is_equal = jumps == 0
    turns = jnp.where(is_equal, jnp.zeros_like(gaps), jumps / jnp.where(is_equal, jnp.ones_like(gaps), gaps))
    changes = sum_of(share * jnp.diagonal(inner), 0), _matmul(_matmul(q, turns * inner), q.T)
    return _chosen(measure, gram, unit), changes


def _shares(measure: Measure, gram: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns eigenvalues, eigenvectors, and equal parts for those that meet the one that is measured, to rounding."""
    # LAPACK may never return for a matrix that holds an infinity.
    finite = jnp.all(jnp.isfinite(gram))
    s, q = jnp.linalg.eigh(jnp.where(finite, gram, jnp.full_like(gram, jnp.nan)))
    rounding = 16 * float(np.finfo(s.dtype).eps) * largest(s, 0)
    is_met = (jnp.abs(s - measure.choice(s, unit)) <= rounding).astype(s.dtype)
    return s, q, is_met / jnp.maximum(sum_of(is_met, 0), 1)


@dataclasses.dataclass(frozen=True)
class FromBlock:
    """The job of a measure for a device, by a given block, or by one that is multiplied by A so many times."""

    measure: Measure
    steps: int = 0

    unit: ClassVar[Unit] = "parts"

    def __call__(
        self, x: jax.Array, layout: Layout, ring: Names, graded: bool, block: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        if not x.size:
            return sum_of(nothing(x)), nothing(x)
        _, rows, columns = layout.kinds
        x, factor = brought(x, layout)
        v = _own(block, layout) if block is not None else _begun(self.measure, self.steps, x, factor, layout)
        u = product(x, lax.stop_gradient(v), columns.over)
        # Of vectors that are nearly orthogonal, the small ones are seen beside the large ones.
        turn = lax.stop_gradient(squares(u, rows.over)[1])
        v, u = product(lax.stop_gradient(v), turn), product(u, turn)
        unit = jnp.square(1 / factor)[:, 0]
        one = functools.partial(_chosen, self.measure)
        square, projection = jax.vmap(one)(product(u, u, rows.over, contracted=1), unit)
        value, slope, power = self.measure.of(square, factor[:, 0], unit)
        if not graded:
            return sum_of(value), None
        gradient = slope[:, :, None] * outer(product(u, projection), v)
        return sum_of(value), sent_back(times_finite(gradient, factor, power), layout)


def _begun(measure: Measure, steps: int, x: jax.Array, factor: jax.Array, layout: Layout) -> jax.Array:
    """Returns the block after some steps from the start, or one that spans everything where it has the vectors."""
    batch, _, columns = layout.kinds
    if layout.sizes[2] <= VECTORS:
        whole = jnp.eye(layout.sizes[2], dtype=x.dtype)[own_places(columns)]
        return varying_over(jnp.broadcast_to(whole, (x.shape[0], *whole.shape)), columns.over + batch.over)
    start = orthonormal(started(x, layout, VECTORS), columns.over)
    x, factor = lax.stop_gradient((x, factor))
    return lax.fori_loop(0, steps, lambda _, v: _step(measure, x, factor, v, layout), start)


def _step(measure: Measure, x: jax.Array, factor: jax.Array, v: jax.Array, layout: Layout) -> jax.Array:
    """Returns AV, made orthonormal. Where A takes vectors to 0, those of the start take their places."""
    _, rows, columns = layout.kinds
    following = product(x, product(x, v, columns.over), rows.over, contracted=1)
    if measure.from_identity:
        most = jnp.maximum(factor, 1)
        following = jnp.square(factor / most) * following - jnp.square(1 / most) * v
    return orthonormal(following, columns.over, instead=started(x, layout, VECTORS))


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
    """The function of matrices, which may be divided, that returns a block for a measure, whole on every device."""

    measure: Measure
    steps: int

    def __call__(self, matrices: Matrices) -> jax.Array:
        x, layout = matrices
        return _whole(_begun(self.measure, self.steps, *brought(x, layout), layout), layout)


@dataclasses.dataclass(frozen=True)
class NextBlock:
    """The function of matrices and their block that returns the block of the next step, whole on every device."""

    measure: Measure

    def __call__(self, matrices: Matrices, block: jax.Array) -> jax.Array:
        x, layout = matrices
        if layout.sizes[2] <= VECTORS:
            return block  # it spans everything
        old = _own(block, layout)
        new = _step(self.measure, *brought(x, layout), old, layout)
        strange = sum_of((~jnp.isfinite(new)).astype(new.dtype), Over((1, 2), layout.kinds[2].over))
        return _whole(jnp.where(strange > 0, old, new), layout)
