"""Penalties of the angles between the rows, or columns, of a kernel."""

import functools

import jax
from jax.typing import ArrayLike

from jaxreg._gram import ABSOLUTE, check_sample, frame_excess, mean_over_pairs, over_batch, random_vectors
from jaxreg._matrix import Axes, Matrices, Mode, as_vectors, check_mode
from jaxreg._names import public
from jaxreg._numerics import as_floats
from jaxreg._plans import Precision, check_precision


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
    matrices = _vectors(x, mode, out_axis, batch_axis, precision)
    if sample is not None:
        if key is None:
            raise ValueError(f"`key` must be given where `sample` is, got None for sample={sample}")
        matrices = random_vectors(matrices, sample, key)
    return over_batch(functools.partial(mean_over_pairs, element=ABSOLUTE, precision=precision), matrices)


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
    matrices = _vectors(x, mode, out_axis, batch_axis, precision)
    return over_batch(functools.partial(frame_excess, precision=precision), matrices)


def _vectors(x: ArrayLike, mode: Mode, out_axis: Axes, batch_axis: Axes, precision: Precision) -> Matrices:
    """Returns the vectors of a kernel that are compared, in its own dtype."""
    check_mode(mode)
    check_precision(precision)
    return as_vectors(as_floats(x), mode=mode, out_axis=out_axis, batch_axis=batch_axis)
