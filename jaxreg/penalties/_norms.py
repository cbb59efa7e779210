"""Norms of a whole array, of its weights or of the singular values of its matrices."""

import jax
from jax.typing import ArrayLike

from jaxreg._matrix import Axes, View, sizes_of_matrices
from jaxreg._names import public
from jaxreg._numerics import as_wide, everything, largest, magnitude, sum_of
from jaxreg._singular import LargestSingularValues, SumOverMatrices, nuclear_norm, rank_of_vector
from jaxreg._singular import stable_rank as stable_rank_of_one
from jaxreg._spread import penalty_of_matrices


@public
def linf(x: ArrayLike) -> jax.Array:
    """Returns the largest magnitude, max|x|, and 0 for an empty array.

    The gradient is sign(x) at the largest weight, in equal parts where several are. It is 0 at a zero array. See
    `jaxreg.LInf`.

    >>> float(jaxreg.penalties.linf(jnp.array([1.0, -2.0, 0.0])))
    2.0
    """
    x = magnitude(as_wide(x))
    return sum_of(largest(x, everything(x)))


@public
def nuclear(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the sum of the singular values of a matrix, Σσ_i, added up over independent matrices.

    The gradient is UVᵀ over the singular values that are not zero to rounding, so 0 at a zero matrix. See
    `jaxreg.Nuclear`.

    >>> print(f"{jaxreg.penalties.nuclear(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    7.0000
    """
    view = View(out_axis=out_axis, batch_axis=batch_axis)
    return penalty_of_matrices(SumOverMatrices(nuclear_norm), as_wide(x), view)


@public
def spectral(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the largest singular value of a matrix, σ₁ = max ‖xv‖/‖v‖, added up over independent matrices.

    The gradient is u₁v₁ᵀ, or the mean of these where several singular values are the largest. It is 0 at a zero matrix.
    See `jaxreg.Spectral`.

    >>> print(f"{jaxreg.penalties.spectral(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    4.0000
    """
    view = View(out_axis=out_axis, batch_axis=batch_axis)
    return penalty_of_matrices(LargestSingularValues(), as_wide(x), view)


@public
def stable_rank(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the stable rank of a matrix, Σσ_i²/σ₁², added up over independent matrices.

    The gradient is 2(X − s σ₁ u₁v₁ᵀ)/σ₁² with the stable rank s, and the mean of these where several singular values
    are the largest. It is 0 at a zero matrix, where the value is 0 too. See `jaxreg.StableRank`.

    >>> print(f"{jaxreg.penalties.stable_rank(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    1.5625
    """
    x = as_wide(x)
    _, rows, columns = sizes_of_matrices(x, out_axis, batch_axis)
    of_one = stable_rank_of_one if min(rows, columns) > 1 else rank_of_vector
    return penalty_of_matrices(SumOverMatrices(of_one), x, View(out_axis=out_axis, batch_axis=batch_axis))
