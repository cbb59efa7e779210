"""Penalties of the angles between the rows, or columns, of a kernel, and of how far they are from orthonormal."""

import jax
from jax.typing import ArrayLike

from jaxreg._angles import Coherence, ExcessOfFrames, MeanOverPairs, check_sample, checked_power, checked_sharpness
from jaxreg._checks import check_bool, checked_count
from jaxreg._convolution import checked_stride, convolution
from jaxreg._gram import power
from jaxreg._matrix import Axes, Mode, View, check_mode, longer_side
from jaxreg._names import public
from jaxreg._numerics import as_floats, as_wide
from jaxreg._plans import Precision, check_precision
from jaxreg._products import FromIdentity, OffDiagonal
from jaxreg._ritz import FromBlock
from jaxreg._spread import ByJob, penalty_of_matrices, penalty_of_whole


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


@public
def p_frame(
    x: ArrayLike,
    *,
    p: float = 4,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns the mean of |cosine|^p over distinct rows, Σ_{i≠j} |cos(x_i, x_j)|^p / (n(n−1)), for a number p >= 1.

    The gradient is orthogonal to each row, and 0 at a zero row. See `jaxreg.PFrame`.

    >>> print(f"{jaxreg.penalties.p_frame(jnp.array([[1.0, 0.0], [1.0, 1.0]])):.4f}")
    0.2500
    """
    element = power(checked_power(p))
    check_mode(mode)
    check_precision(precision)
    view = View(mode, out_axis, batch_axis)
    return penalty_of_matrices(MeanOverPairs(precision=precision, element=element), as_floats(x), view)


@public
def mutual_coherence(
    x: ArrayLike,
    *,
    sharpness: float | None = None,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns the largest absolute cosine between distinct rows, max_{i≠j} |cos(x_i, x_j)|.

    With a `sharpness` t it is the smooth maximum (1/t) log Σ_{i≠j} exp(t |cos(x_i, x_j)|). The gradient is that of the
    pairs at the maximum, in equal parts, or of all pairs by their weight. See `jaxreg.MutualCoherence`.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.penalties.mutual_coherence(x):.4f}")
    0.7071
    """
    sharpness = checked_sharpness(sharpness)
    check_mode(mode)
    check_precision(precision)
    return penalty_of_matrices(ByJob(Coherence(sharpness, precision)), as_wide(x), View(mode, out_axis, batch_axis))


@public
def off_diagonal(
    x: ArrayLike,
    *,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns the sum of the squared products of distinct rows, Σ_{i≠j} ⟨x_i, x_j⟩². Their lengths are free.

    The gradient with respect to x_i is 4 Σ_{j≠i} ⟨x_i, x_j⟩ x_j. See `jaxreg.OffDiagonal`.

    >>> float(jaxreg.penalties.off_diagonal(jnp.array([[1.0, 0.0], [1.0, 1.0]])))
    2.0
    """
    check_mode(mode)
    check_precision(precision)
    return penalty_of_matrices(ByJob(OffDiagonal(precision)), as_wide(x), View(mode, out_axis, batch_axis))


@public
def soft_orthogonal(
    x: ArrayLike,
    *,
    squared: bool = True,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns ‖XᵀX − I‖², or ‖XXᵀ − I‖² where the rows are fewer: the distance from orthonormal vectors.

    Without `squared` it returns the norm. The gradient is 4X(XᵀX − I), or that over twice the norm, and 0 where the
    norm is. See `jaxreg.SoftOrthogonal`.

    >>> float(jaxreg.penalties.soft_orthogonal(jnp.array([[2.0, 0.0], [0.0, 1.0]])))
    9.0
    """
    check_bool(squared, name="squared")
    check_precision(precision)
    x = as_wide(x)
    view = longer_side(x, out_axis, batch_axis)
    return penalty_of_matrices(ByJob(FromIdentity(squared, precision)), x, view)


@public
def srip(x: ArrayLike, *, steps: int = 20, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the spectral norm max |σ² − 1| of XᵀX − I, or of XXᵀ − I where the rows are fewer: the worst direction.

    It is estimated from a block of sixteen vectors, which XᵀX − I multiplies as many times as `steps` says, and exact
    where the smaller side is at most sixteen. The gradient is ±2(Xq)qᵀ for the direction q. See `jaxreg.SRIP`.

    >>> float(jaxreg.penalties.srip(jnp.array([[2.0, 0.0], [0.0, 1.0]])))
    3.0
    """
    steps = checked_count(steps, name="steps", least=1)
    x = as_wide(x)
    return penalty_of_matrices(ByJob(FromBlock(True, steps)), x, longer_side(x, out_axis, batch_axis))


@public
def conv_orthogonal(
    x: ArrayLike,
    *,
    stride: int = 1,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns ‖conv(K, K) − I‖², the distance of a convolution from orthonormal rows, or columns where these are fewer.

    The gradient is 4(conv(K, K) − I) applied to K, a transposed convolution. See `jaxreg.ConvOrthogonal`.

    >>> kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1, 0, 0].set(2.0)
    >>> float(jaxreg.penalties.conv_orthogonal(kernel))
    9.0
    """
    stride = checked_stride(stride)
    check_precision(precision)
    x = as_wide(x)
    return penalty_of_whole(convolution(x, stride, in_axis, out_axis, batch_axis, precision), x)
