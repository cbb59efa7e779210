"""Penalties of two arrays at once: two factors of a matrix, activations and their decoder, two views of a batch."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxreg._checks import describe, option
from jaxreg._matrix import Axes, positive_axes
from jaxreg._names import public
from jaxreg._numerics import Over, accumulation_dtype, as_wide, magnitude, near_one_exactly, norm, sum_of
from jaxreg._plans import Precision, check_precision, of_one_kind
from jaxreg._shards import AxisName, Names, all_parts, gathered, names_of_batch, size_of, split_from, total, varying
from jaxreg.penalties._outputs import centred_and_deviations


@public
def product_l2(a: ArrayLike, b: ArrayLike, *, precision: Precision = None) -> jax.Array:
    """Returns Σ (ab)², the squared norm of a product of two matrices, such as of the update ab of LoRA.

    The product is not made where its factors are thin: for shapes (m, r) and (r, n) it is ⟨aᵀa, bbᵀ⟩, in about
    6r²(m + n) FLOPs with its gradients, and rounded beside ‖aᵀa‖ ‖bbᵀ‖. Penalizing the factors one by one does not hold
    the product alike, since a can grow while b shrinks. The gradients are 2(ab)bᵀ and 2aᵀ(ab).

    Args:
      a: a real floating-point array of shape (..., m, r).
      b: one of shape (..., r, n). Axes in front count independent products, whose squares add up.
      precision: that of the matrix products, as in `jnp.matmul`.

    Returns:
      A scalar in at least float32.

    Raises:
      TypeError, ValueError: `a` or `b` is no array of real floating-point numbers, or their shapes do not fit.

    >>> a, b = jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 0.0, 1.0]])
    >>> float(jaxreg.penalties.product_l2(a, b))
    50.0

    Source: Hu et al., LoRA: low-rank adaptation of large language models, 2022, for the factors; the norm is weight
    decay of the merged update.
    """
    check_precision(precision)
    a, b = _of_two(a, b, names=("a", "b"))
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            f"`a` and `b` must have shapes (..., m, r) and (..., r, n), got {describe(a)} and {describe(b)}"
        )
    a, b = _gathered(a, "a"), _gathered(b, "b")
    if not a.size or not b.size:
        return sum_of(a) + sum_of(b)
    (a, a_factor), (b, b_factor) = (near_one_exactly(array, tuple(range(array.ndim))) for array in (a, b))
    a_factor, b_factor = a_factor.reshape(()), b_factor.reshape(())
    (m, r), n = a.shape[-2:], b.shape[-1]

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision=of_one_kind(precision))

    if r * (m + n) < m * n:
        value = sum_of(product(jnp.swapaxes(a, -1, -2), a) * product(b, jnp.swapaxes(b, -1, -2)))
    else:
        value = sum_of(jnp.square(product(a, b)))
    return value * a_factor * b_factor * a_factor * b_factor


@public
def norm_weighted_l1(x: ArrayLike, decoder: ArrayLike, *, group_axis: Axes = 0) -> jax.Array:
    """Returns the mean over samples of Σ_j |x_j| ‖d_j‖, the sparsity of codes under a decoder with free norms.

    Without the norms a sparse autoencoder makes its codes small and its decoder large. With them, rescaling a feature
    and its vector changes nothing, so the decoder needs no constraint. The gradient is sign(x_j) ‖d_j‖ over the number
    of samples, and 0 at 0. With respect to d_j it is the mean of |x_j| times d_j/‖d_j‖, and 0 at a zero vector.

    Args:
      x: codes, a real floating-point array of shape (..., features). All axes but the last count samples.
      decoder: the weights, with a vector for each feature.
      group_axis: the axis of the decoder that counts the features, 0 for a Dense kernel `(features, out)`.

    Returns:
      A scalar in at least float32.

    Raises:
      TypeError, ValueError: an argument is no array of real floating-point numbers, or the numbers of features differ.

    >>> codes, decoder = jnp.array([[1.0, 0.0], [3.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])
    >>> float(jaxreg.penalties.norm_weighted_l1(codes, decoder))
    11.0

    Source: Conerly et al., Update on how we train SAEs, 2024.
    """
    x, decoder = _of_two(x, decoder, names=("x", "decoder"))
    groups = positive_axes(group_axis, decoder.ndim, name="group_axis")
    if not x.ndim or len(groups) != 1 or decoder.shape[groups[0]] != x.shape[-1]:
        raise ValueError(
            f"`decoder` must have as many vectors along `group_axis` {group_axis} as the last axis of `x` has "
            f"features, got {describe(decoder)} for {describe(x)}"
        )
    _check_whole(x, "x")
    _check_whole(decoder, "decoder")
    if not x.size:
        return sum_of(x)
    count = x.size // x.shape[-1]
    means = gathered(sum_of(magnitude(x) / count, tuple(range(x.ndim - 1)))).reshape(-1)
    lengths = gathered(norm(decoder, tuple(i for i in range(decoder.ndim) if i != groups[0]))).reshape(-1)
    return sum_of(means * lengths)


@public
def barlow(
    x: ArrayLike,
    y: ArrayLike,
    *,
    lam: ArrayLike = 5e-3,
    epsilon: ArrayLike = 1e-5,
    precision: Precision = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns the loss of Barlow twins, Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij², for two views of a batch.

    C is the matrix of correlations between the features of the one view and those of the other, over samples. Each
    feature is divided by √(variance + ε), as batch normalization does. For more features than samples, Σ C² comes from
    the products of samples, in about 4N²d FLOPs for d features and N samples and 13N²d with gradients, and is rounded
    beside Σ C_ii².

    Args:
      x, y: embeddings, real floating-point arrays of one shape (..., features). All axes but the last count samples.
      lam: λ, the weight of the correlations of distinct features, a number >= 0.
      epsilon: ε, a number > 0.
      precision: that of the matrix products, as in `jnp.matmul`.
      axis_name: the mesh axis, or several, of a `jax.shard_map` that divide the first axis. Means, variances and
        correlations are then those of the whole batch, before they are squared, and the loss is the same on every
        device.

    Returns:
      A scalar in at least float32. An empty batch has the loss 0.

    Raises:
      TypeError, ValueError: an argument is no array of real floating-point numbers, the shapes differ or have a rank
        below 2, or an option is out of range.

    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    >>> print(f"{jaxreg.penalties.barlow(x, x, lam=0.5):.4f}")
    1.0000

    Source: Zbontar et al., Barlow twins: self-supervised learning via redundancy reduction, 2021.
    """
    check_precision(precision)
    x, y = _of_two(x, y, names=("x", "y"))
    if x.ndim < 2 or x.shape != y.shape:
        raise ValueError(f"`x` and `y` must have one shape (..., features), got {describe(x)} and {describe(y)}")
    lam, epsilon = option(lam, x, name="lam"), option(epsilon, x, name="epsilon", above=0.0)
    if not x.size:
        return sum_of(x) + sum_of(y)
    if axis_name is None:
        names: Names = ()
        x, y = _gathered(x, "x"), _gathered(y, "y")
    else:
        names = names_of_batch(axis_name)
        for view in (x, y):
            split_from(PartitionSpec(names), view)  # which checks that the axes divide it
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    count, features = x.shape[0] * size_of(names), x.shape[1]
    samples = Over((0,), names)

    def standardized(view: jax.Array) -> jax.Array:
        centred, length, _ = centred_and_deviations(view, samples, count, count, epsilon)
        return centred / length * count**-0.5

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dot(x, y, precision=of_one_kind(precision))

    x, y = standardized(x), standardized(y)
    diagonal = total(sum_of(x * y, 0), names)
    if features <= count:
        correlations = total(product(x.T, y), names)
        redundant = sum_of(jnp.square(correlations - jnp.diag(diagonal[0])))
    else:
        x, y = all_parts(x, 0, names), all_parts(y, 0, names)
        redundant = sum_of(product(x, x.T) * product(y, y.T)) - sum_of(jnp.square(diagonal))
    return sum_of(jnp.square(1 - diagonal)) + lam * redundant


def _check_whole(x: jax.Array, name: str) -> None:
    if axes := varying(x):
        raise ValueError(
            f"`{name}` must be a whole array, got a shard {describe(x)} that varies over the mesh axes {sorted(axes)} "
            "in a `jax.shard_map`; gather it by `jax.lax.all_gather(..., to='invarying')`"
        )


def _gathered(x: jax.Array, name: str) -> jax.Array:
    _check_whole(x, name)
    return gathered(x)


def _of_two(x: ArrayLike, y: ArrayLike, *, names: tuple[str, str]) -> tuple[jax.Array, jax.Array]:
    """Returns two arrays in the wider of their accumulation dtypes."""
    x, y = as_wide(x, name=names[0]), as_wide(y, name=names[1])
    dtype = accumulation_dtype(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)
