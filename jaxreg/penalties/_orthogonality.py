"""Penalties of the angles between the rows, or columns, of a kernel."""

import jax
from jax.typing import ArrayLike

from jaxreg._angles import ExcessOfFrames, MeanOverPairs, check_sample
from jaxreg._matrix import Axes, Mode, View, check_mode
from jaxreg._names import public
from jaxreg._numerics import as_floats
from jaxreg._plans import Precision, check_precision
from jaxreg._spread import penalty_of_matrices


@public
def orthogonal(
    x: ArrayLike,
    *,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
    sample: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the mean absolute cosine between distinct rows, Σ_{i≠j} |cos(x_i, x_j)| / (n(n−1)), as in Keras.

    The gradient is orthogonal to each row, and 0 at a zero row. A single row has the value 0. With `sample`, the mean
    runs over that many random rows, drawn by `key`. See `jaxreg.OrthogonalRegularizer`.

    >>> print(f"{jaxreg.penalties.orthogonal(jnp.array([[1.0, 0.0], [1.0, 1.0]])):.4f}")
    0.7071
    """
    check_mode(mode)
    check_precision(precision)
    check_sample(sample)
    if sample is not None and key is None:
        raise ValueError(f"`key` must be given where `sample` is, got None for sample={sample}")
    view = View(mode, out_axis, batch_axis)
    keys = () if sample is None else (key,)
    return penalty_of_matrices(MeanOverPairs(precision=precision, sample=sample), as_floats(x), view, *keys)


@public
def frame_potential(
    x: ArrayLike,
    *,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns the mean squared cosine between distinct rows, minus the least value that it can have.

    For n ≤ d rows it is Σ_{i≠j} cos²(x_i, x_j) / (n(n−1)), and for n > d, with the unit rows U, ‖UᵀU − (n/d)I‖² /
    (n(n−1)). The gradient is orthogonal to each row, and finite at a zero row. See `jaxreg.FramePotential`.

    >>> print(f"{jaxreg.penalties.frame_potential(jnp.ones((3, 2))):.4f}")
    0.7500
    """
    check_mode(mode)
    check_precision(precision)
    return penalty_of_matrices(ExcessOfFrames(precision), as_floats(x), View(mode, out_axis, batch_axis))
