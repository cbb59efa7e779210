"""Penalties: pure functions from an array to a scalar, without a strength and without state.

Every one of them takes a real floating-point array, accumulates in at least float32, and returns a
scalar of that dtype; its gradient has the dtype of `x`. Anything else is a `TypeError`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._gram import mean_absolute_cosine
from jaxreg._matrix import Axes, Mode, as_matrices, check_mode
from jaxreg._numerics import as_wide, magnitude

__all__ = ["l1", "l2", "orthogonal"]


def l1(x: ArrayLike) -> jax.Array:
    """Sum of absolute values: Σ|x|.

    The subgradient at 0 is 0: a weight that is exactly zero is not pushed.

    Args:
      x: a real floating-point array of any shape.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array.

    >>> float(jaxreg.penalties.l1(jnp.array([1.0, -2.0, 0.0])))
    3.0
    >>> jax.grad(jaxreg.penalties.l1)(jnp.array([1.0, -2.0, 0.0]))
    Array([ 1., -1.,  0.], dtype=float32)

    Source: Tibshirani, Regression shrinkage and selection via the lasso, 1996.
    """
    return jnp.sum(magnitude(as_wide(x)))


def l2(x: ArrayLike) -> jax.Array:
    """Sum of squares: Σx², Keras's convention, without ½. The gradient is 2x.

    Args:
      x: a real floating-point array of any shape.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array.

    >>> float(jaxreg.penalties.l2(jnp.array([1.0, -2.0, 0.0])))
    5.0

    Source: Hoerl and Kennard, Ridge regression, 1970.
    """
    return jnp.sum(jnp.square(as_wide(x)))


def orthogonal(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Mean absolute cosine between distinct rows: Σ_{i≠j} |cos(x_i, x_j)| / (n(n−1)), as in Keras.

    A kernel of any rank ≥ 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts
    independent matrices, whose means add up, and all the other axes are its rows. For a Dense kernel
    `(in, out)` or a convolution `HWIO`, the units are the columns: `mode="columns"` compares them.

    With more rows than columns it cannot reach 0, and repeated rows can then score best: for such a
    matrix compare the columns instead.

    The cosine is taken with norms of at least 1e-7. The subgradient of |·| at 0 is 0, so a zero row
    has cosine 0 with every other row and gradient 0; a single row has no pair, and its value is 0.
    The product of the rows runs at the highest matmul precision.

    Args:
      x: a real floating-point array of rank ≥ 2.
      mode: "rows" or "columns", which of the two are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array, or an axis is not an int.
      ValueError: `x` has rank < 2, an axis is out of range, named twice, or none is left for the
        rows; `mode` is neither of the two.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.penalties.orthogonal(x):.4f}")
    0.7071
    >>> float(jaxreg.penalties.orthogonal(jnp.eye(3)))
    0.0

    Source: `keras.regularizers.OrthogonalRegularizer`, 2020; Brock et al., Neural photo editing
    with introspective adversarial networks, 2017.
    """
    check_mode(mode)
    matrices = as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)
    if mode == "columns":
        matrices = matrices.swapaxes(-1, -2)
    return jnp.sum(jax.vmap(mean_absolute_cosine)(matrices))
