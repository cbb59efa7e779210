"""Penalties of layer outputs, which are means over the samples of a batch."""

import contextlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxreg._alike import divided_alike
from jaxreg._checks import option
from jaxreg._matrix import Axes, View, samples_and_features
from jaxreg._names import mean_over_batch, public
from jaxreg._numerics import Over, as_wide, everything, near_one, peak, sum_of
from jaxreg._plans import Precision, check_precision
from jaxreg._products import OffDiagonal, OffDiagonalOfComponents
from jaxreg._shards import AxisName, divided_as, names_of_batch, split_from
from jaxreg._spread import ByJob, penalty_of_matrices


@public
@mean_over_batch
def z_loss(x: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = (), axis_name: AxisName = None) -> jax.Array:
    """Returns the mean over samples of the squared logarithm of the sum of exponentials, mean (log Σ_j exp x_j)².

    The gradient of a sample is 2 log Σ_j exp x_j · softmax(x), over the number of samples. See `jaxreg.ZLoss`.

    >>> print(f"{jaxreg.penalties.z_loss(jnp.zeros((3, 4))):.4f}")
    1.9218
    """
    x = _outputs(x)
    with _batch(x, axis_name):
        samples, features, count, _ = samples_and_features(x, out_axis, batch_axis)
        if not x.size:
            return sum_of(x)
        top = peak(jax.lax.stop_gradient(x), features, -jnp.inf)
        top = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
        log_sum = top + jnp.log(sum_of(jnp.exp(x - top), features))
        return _sum_over_all(sum_of(log_sum * (log_sum / count), samples), x)


@public
@mean_over_batch
def kl_sparsity(
    x: ArrayLike,
    *,
    rho: ArrayLike = 0.05,
    epsilon: ArrayLike = 0.01,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns Σ_j KL(ρ ‖ m_j), with the mean m_j of each feature over samples: ρ log(ρ/m) + (1−ρ) log((1−ρ)/(1−m)).

    Outside of [ερ, 1 − ε(1−ρ)] it goes on along its tangent. The gradient is (−ρ/m + (1−ρ)/(1−m)) over the number of
    samples, with m brought into that interval. See `jaxreg.KLSparsity`.

    >>> print(f"{jaxreg.penalties.kl_sparsity(jnp.full((4, 2), 0.5)):.4f}")
    0.9893
    """
    x = _outputs(x)
    rho = option(rho, x, name="rho", above=0.0, most=1.0)
    epsilon = option(epsilon, x, name="epsilon", above=0.0, most=1.0)
    with _batch(x, axis_name):
        samples, _, count, _ = samples_and_features(x, out_axis, batch_axis)
        if not x.size:
            return sum_of(x)
        mean = sum_of(x / count, samples)
        # The share that is not active is computed for itself, since 1 − m has few digits left where m is near 1.
        least, rest = epsilon * rho, epsilon * (1 - rho)
        value = _relative_entropy(rho, jnp.clip(mean, least, 1 - rest))
        value += _relative_entropy(1 - rho, jnp.clip(1 - mean, rest, 1 - least))
        value += jnp.minimum(mean - least, 0) * ((1 - rho) / (1 - least) - 1 / epsilon)
        value += jnp.maximum(mean - (1 - rest), 0) * (1 / epsilon - rho / (1 - rest))
        return _sum_over_all(value, x)


def _relative_entropy(part: jax.Array, other: jax.Array) -> jax.Array:
    """Returns part · log(part/other), without the rounding of the quotient where both are alike, and 0 for no part."""
    other = jnp.where(part == 0, jnp.ones_like(other), other)
    return part * jnp.log1p((part - other) / jnp.where(part == 0, 2 * other, other))


@public
@mean_over_batch
def decov(
    x: ArrayLike,
    *,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns half the sum of squared covariances of distinct features, ½ Σ_{i≠j} C_ij² with C = HᵀH/N.

    H are the N samples minus their mean. The gradient is (2/N) H (C without its diagonal). See `jaxreg.DeCov`.

    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    >>> float(jaxreg.penalties.decov(x))
    1.0
    """
    return _squared_covariances(x, 0, out_axis, batch_axis, precision, axis_name)[0] / 2


@public
@mean_over_batch
def vicreg_covariance(
    x: ArrayLike,
    *,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns the sum of squared covariances of distinct features over their number d, (1/d) Σ_{i≠j} C_ij².

    C = HᵀH/(N − 1), with the N samples minus their mean as H. The gradient is 4/(d(N−1)) H (C without its diagonal).
    See `jaxreg.VICRegCovariance`.

    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    >>> float(jaxreg.penalties.vicreg_covariance(x))
    4.0
    """
    value, features = _squared_covariances(x, 1, out_axis, batch_axis, precision, axis_name)
    return value / max(features, 1)


def _squared_covariances(
    x: ArrayLike, fewer: int, out_axis: Axes, batch_axis: Axes, precision: Precision, axis_name: AxisName
) -> tuple[jax.Array, int]:
    """Returns Σ_{i≠j} C_ij² with C = HᵀH/(N − fewer), and the number of features.

    It takes the products of features, or of samples where these are fewer.
    """
    check_precision(precision)
    x = _outputs(x)
    with _batch(x, axis_name):
        samples, _, count, features = samples_and_features(x, out_axis, batch_axis)
        if not x.size:
            return sum_of(x), features
        centred, over = x - sum_of(x / count, samples), max(count - fewer, 1)
        job: OffDiagonal | OffDiagonalOfComponents
        if features <= count:
            job, view = OffDiagonal(precision, over), View("columns", out_axis, batch_axis)
        else:
            job, view = OffDiagonalOfComponents(precision, over), View("rows", out_axis, batch_axis)
        return penalty_of_matrices(ByJob(job), centred, view), features


@public
@mean_over_batch
def vicreg_variance(
    x: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    epsilon: ArrayLike = 1e-4,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns the mean over features of (γ − s_j)₊, with the standard deviation s_j = √(variance + ε) over N samples.

    The variance is over N − 1. The gradient is −h/((N−1)s) over the number of features where s < γ, with the samples
    minus their mean h, and 0 where s ≥ γ. See `jaxreg.VICRegVariance`.

    >>> x = jnp.array([[0.5, 3.0], [0.5, -3.0]])
    >>> print(f"{jaxreg.penalties.vicreg_variance(x):.4f}")
    0.4950
    """
    x = _outputs(x)
    gamma, epsilon = option(gamma, x, name="gamma"), option(epsilon, x, name="epsilon", above=0.0)
    with _batch(x, axis_name):
        samples, _, count, features = samples_and_features(x, out_axis, batch_axis)
        if not x.size:
            return sum_of(x)
        _, length, scale = centred_and_deviations(x, samples, count, max(count - 1, 1), epsilon)
        length = scale * length
        missing = jnp.where(length >= gamma, jnp.zeros_like(length), gamma - length)
        return _sum_over_all(missing, x) / features


def centred_and_deviations(
    x: jax.Array, samples: Over, count: int, divisor: int, epsilon: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns samples minus their mean, √(Σ of their squares / divisor + ε), and the scale that both are divided by.

    No square of them overflows then. The root is smooth, also where all samples are alike.
    """
    centred, least = x - sum_of(x / count, samples), jnp.sqrt(epsilon)
    scale = jnp.maximum(near_one(centred, samples)[1], jax.lax.stop_gradient(least))
    centred = centred * (1 / scale)
    return centred, jnp.sqrt(sum_of(jnp.square(centred), samples) / divisor + jnp.square(least / scale)), scale


def _outputs(x: ArrayLike) -> jax.Array:
    """Returns layer outputs in their accumulation dtype. Their gradient is divided as they are.

    It is made of statistics, which do not show the compiler how that is.
    """
    x = as_wide(x)
    return divided_alike(x, x)


def _batch(x: jax.Array, axis_name: AxisName) -> contextlib.AbstractContextManager[None]:
    """Lets the statistics of `x` be those of the whole batch, where mesh axes divide it."""
    if axis_name is None:
        return contextlib.nullcontext()
    return divided_as(x, split_from(PartitionSpec(names_of_batch(axis_name)), x))


def _sum_over_all(statistics: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the sum of statistics of `x`, of which devices may have parts."""
    return sum_of(sum_of(statistics, everything(x)))
