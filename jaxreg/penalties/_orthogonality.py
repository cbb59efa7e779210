"""Penalties of the angles between the rows, or columns, of a kernel."""

import functools

import jax
from jax.typing import ArrayLike

from jaxreg._gram import (
    Precision,
    check_sample,
    mean_absolute_cosine,
    mean_squared_cosine,
    over_batch,
    random_rows,
)
from jaxreg._matrix import Axes, Mode, as_matrices, check_mode
from jaxreg._names import public
from jaxreg._numerics import as_wide


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
    check_sample(sample)
    matrices = _vectors(x, mode, out_axis, batch_axis)
    if sample is not None:
        if key is None:
            raise ValueError(f"`key` must be given where `sample` is, got None for sample={sample}")
        matrices = random_rows(matrices, sample, key)
    return over_batch(functools.partial(mean_absolute_cosine, precision=precision), matrices)


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
    matrices = _vectors(x, mode, out_axis, batch_axis)
    return over_batch(functools.partial(mean_squared_cosine, precision=precision), matrices)


def _vectors(x: ArrayLike, mode: Mode, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns the matrices of a kernel, with the vectors that are compared in their rows."""
    check_mode(mode)
    matrices = as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)
    return matrices if mode == "rows" else matrices.swapaxes(-1, -2)
