"""Penalties of the singular values of matrices."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._matrix import Axes, as_matrices
from jaxreg._numerics import as_wide
from jaxreg._singular import nuclear_norm, spectral_norm


def nuclear(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The sum of the singular values of a matrix: Σσ_i, whose zeros make the rank low.

    The gradient is UVᵀ over the singular values that are not zero to rounding, so 0 at a zero matrix.

    Args:
      x: a real floating-point array of rank >= 2, seen as a matrix as in `orthogonal`.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose norms add up.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array, or an axis is not an int.
      ValueError: `x` has rank < 2, or an axis is out of range, named twice, or none is left for the rows.

    >>> print(f"{jaxreg.penalties.nuclear(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    7.0000

    Source: Fazel, Matrix rank minimization with applications, 2002.
    """
    return jnp.sum(jax.vmap(nuclear_norm)(as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)))


def spectral(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The largest singular value of a matrix: σ₁ = max ‖xv‖/‖v‖.

    The gradient is u₁v₁ᵀ, the mean of these where several singular values are the largest, and 0 at a zero matrix.

    Args and errors are those of `nuclear`; the norms of independent matrices add up.

    >>> print(f"{jaxreg.penalties.spectral(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    4.0000

    Source: Yoshida and Miyato, Spectral norm regularization for improving the generalizability of deep learning, 2017.
    """
    return jnp.sum(jax.vmap(spectral_norm)(as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)))
