"""Angles between the vectors of a kernel."""

import jax
from jax.typing import ArrayLike

from jaxreg._angles import LargestCosine, all_cosines, over_batch
from jaxreg._matrix import Axes, Mode, View, as_vectors, check_mode
from jaxreg._names import public
from jaxreg._numerics import as_wide
from jaxreg._shards import gathered, split_of
from jaxreg._spread import penalty_of_matrices


@public
def cosines(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the cosines between all rows (or columns): UUᵀ with the rows u_i = x_i / max(‖x_i‖, 1e-7) of U.

    The kernel is seen as a matrix as in `jaxreg.OrthogonalRegularizer`. A zero row has the cosine 0 with every row,
    itself included. A kernel that is divided over a mesh is gathered, so every device has all cosines.

    Args:
      x: a real floating-point array of rank >= 2.
      mode: "rows" or "columns", the vectors that are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Returns:
      An array (n, n) in at least float32, or (batch, n, n) where `batch_axis` names an axis.

    Raises:
      TypeError, ValueError: as `jaxreg.OrthogonalRegularizer` does.

    >>> jaxreg.diagnostics.cosines(jnp.array([[3.0, 0.0], [0.0, -2.0]])).round(4)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    check_mode(mode)
    x = as_wide(x)
    split_of(x)  # raises an error for a shard
    vectors = as_vectors(gathered(x), View(mode, out_axis, batch_axis))
    grams = over_batch(all_cosines, *vectors)
    return grams[0] if isinstance(batch_axis, tuple | list) and not batch_axis else grams


@public
def mutual_coherence(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the largest |cosine| between two distinct rows (or columns), max_{i≠j} |cos(x_i, x_j)|, over all
    matrices.

    A kernel that is divided over a mesh is gathered, and each device compares its share of the vectors with all.

    For n vectors in d dimensions it is at least √((n−d)/(d(n−1))). A single vector has the coherence 0. No more than
    1024 rows of the cosines are held at a time.

    Arguments, shapes and errors are those of `cosines`. The result is a scalar in at least float32.

    >>> float(jaxreg.diagnostics.mutual_coherence(jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])))
    1.0

    Source: Welch, Lower bounds on the maximum cross correlation of signals, 1974.
    """
    check_mode(mode)
    return penalty_of_matrices(LargestCosine(), as_wide(x), View(mode, out_axis, batch_axis))
