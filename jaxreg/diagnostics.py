"""Numbers about weights: how near to orthogonal the rows or columns of a kernel are."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._matrix import Axes, Mode, as_matrices, check_mode
from jaxreg._numerics import as_wide, unit_rows

__all__ = ["cosines", "mutual_coherence"]


def cosines(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The cosine of each row (or column) with each other one: UUᵀ with the rows u_i = x_i / max(‖x_i‖, 1e-7).

    The kernel is seen as a matrix as in `jaxreg.penalties.orthogonal`. A zero row has cosine 0 with every row, itself
    included.

    Args:
      x: a real floating-point array of rank >= 2.
      mode: "rows" or "columns", which of the two are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Returns:
      An array (n, n) of at least float32, or (batch, n, n) where `batch_axis` names an axis.

    Raises:
      TypeError, ValueError: as `jaxreg.penalties.orthogonal` does.

    >>> jaxreg.diagnostics.cosines(jnp.array([[3.0, 0.0], [0.0, -2.0]])).round(4)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    check_mode(mode)
    matrices = as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)
    units = unit_rows(matrices if mode == "rows" else matrices.swapaxes(-1, -2)).units
    grams = jnp.matmul(units, units.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
    return grams[0] if isinstance(batch_axis, tuple | list) and not batch_axis else grams


def mutual_coherence(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The largest |cosine| between two distinct rows (or columns): max_{i≠j} |cos(x_i, x_j)|, over all matrices.

    Of n vectors in d dimensions it is at least √((n−d)/(d(n−1))). A single vector has the coherence 0.

    Args, shapes and errors are those of `cosines`. Returns a scalar of at least float32.

    >>> float(jaxreg.diagnostics.mutual_coherence(jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])))
    1.0

    Source: Welch, Lower bounds on the maximum cross correlation of signals, 1974.
    """
    between = cosines(x, mode=mode, out_axis=out_axis, batch_axis=batch_axis)
    own = jnp.broadcast_to(jnp.eye(between.shape[-1], dtype=bool), between.shape)
    return jnp.max(jnp.where(own, 0.0, jnp.abs(between)), initial=0.0)
