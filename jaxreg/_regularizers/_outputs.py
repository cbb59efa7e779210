"""Regularizers of layer outputs, which are means over the samples of a batch."""

from typing import Any

from jaxreg import penalties
from jaxreg._fields import axes, number, static, strength
from jaxreg._matrix import Axes, sizes_of_matrices
from jaxreg._names import public
from jaxreg._plans import Precision, check_precision
from jaxreg._regularizers._shipped import Shipped


class _OfOutputs(Shipped):
    """The fields that all of them have."""

    factor: Any = strength(0.01)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    def _seen(self, x: Any) -> str:
        count, samples, features = sizes_of_matrices(x, self.out_axis, self.batch_axis)
        return f"{f'{count} times ' * (count != 1)}{samples} samples of {features}"


class _OfCovariances(_OfOutputs):
    """The fields of those that take products of features."""

    precision: Precision = static(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.precision)


@public
class ZLoss(_OfOutputs):
    """The z-loss of logits, factor · mean (log Σ_j exp x_j)²: the squared normalizer of a softmax.

    It holds logits near a scale at which the softmax is exact in low precision, and does not change which class is
    the likely one. Use it for the logits of a language model, or of the router of a mixture of experts, with a factor
    of about 1e-4 or 1e-3.

    Outputs `(batch, ..., features)` are seen as samples of features: `out_axis` are the features, `batch_axis` counts
    independent outputs, whose penalties add up, and all the other axes count samples. The mean is over samples, so
    `jaxreg.activity_penalty` does not divide it by the size of the batch again. The penalty is a scalar in at least
    float32, and the gradient has the dtype of the array. It is 2 · factor/N · log Σ_j exp x_j · softmax(x) for N
    samples. A logit of −inf has no part in either. The penalty of an empty array is 0. There is no prox.

    Under data parallelism the statistics are those of the whole batch, on a mesh by the type of the array, and inside
    `jax.shard_map` by `activity_penalty(..., axis_name=)`, `Rules.with_specs`, or `axis_name` of the function.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis: the axis or axes that are the features.
      batch_axis: the axis or axes that count independent outputs, such as those of layers stacked by `nn.scan`. The
        axis of the examples is none of them.

    Raises:
      TypeError: `factor` is not a number, or an axis is not an int.
      ValueError: `factor` is negative or not finite. When called: the rank is below 2, an axis is out of range or named
        twice, or no axis is left for the samples.

    >>> print(f"{jaxreg.ZLoss(0.5)(jnp.zeros((3, 4))):.4f}")
    0.9609

    Source: de Brébisson and Vincent, The Z-loss: a shift and scale invariant classification loss belonging to the
    spherical family, 2016, for the name; Chowdhery et al., PaLM: scaling language modeling with pathways, 2022; Zoph et
    al., ST-MoE: designing stable and transferable sparse expert models, 2022, for routers.
    """

    _penalty = penalties.z_loss


@public
class KLSparsity(_OfOutputs):
    """The sparsity of mean activations, factor · Σ_j KL(ρ ‖ m_j), with the mean m_j of feature j over samples.

    KL(ρ ‖ m) = ρ log(ρ/m) + (1−ρ) log((1−ρ)/(1−m)) is least where a feature is active in the share ρ of samples. Use
    it for the outputs of a sigmoid, which lie between 0 and 1, as in a sparse autoencoder. For other outputs take `L1`.

    Outside of [ερ, 1 − ε(1−ρ)] the divergence goes on along its tangent, whose slope is about 1/ε. So a feature that is
    never active, or always, has a finite pull, where the divergence itself is infinite. It is convex.

    Samples, features, axes, dtypes and meshes are as in `ZLoss`. The gradient is factor · (−ρ/m + (1−ρ)/(1−m))/N for N
    samples, with m brought into that interval. The penalty of an empty array is 0. There is no prox.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis, batch_axis: as in `ZLoss`.
      rho: ρ, the wanted mean, a number > 0 and <= 1 or an array.
      epsilon: ε, a number > 0 and <= 1 or an array.

    Raises:
      TypeError, ValueError: as `ZLoss` does, for `rho` and `epsilon` too.

    >>> print(f"{jaxreg.KLSparsity(0.5, rho=0.05)(jnp.full((4, 2), 0.5)):.4f}")
    0.4946

    Source: Lee, Ekanadham and Ng, Sparse deep belief net model for visual area V2, 2007, for the aim; Ng, Sparse
    autoencoder, 2011, for the divergence.
    """

    rho: Any = number(0.05, above=0.0, most=1.0)
    epsilon: Any = number(0.01, above=0.0, most=1.0)

    _penalty = penalties.kl_sparsity


@public
class DeCov(_OfCovariances):
    """The covariances of distinct features, factor · ½ Σ_{i≠j} C_ij² with C = HᵀH/N.

    H are the N samples minus their mean. It makes features carry different information. It puts no penalty on
    variances, but features that shrink lower it too. Use it against overfitting of a
    hidden layer, where batches are large enough for a covariance to mean something.

    Samples, features, axes, dtypes and meshes are as in `ZLoss`. The gradient is factor · (2/N) H(C without its
    diagonal). A single sample and a single feature have the penalty 0. There is no prox. For d ≤ N features it takes
    the products of features, at the cost of `OrthogonalRegularizer`. For more it takes those of samples, in 4N²d FLOPs,
    and subtracts the squares of variances: then a penalty that is small beside these has their rounding. Where outputs
    are above 1e6, covariances below 1e-19 of the largest possible one count as 0.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis, batch_axis: as in `ZLoss`.
      precision: that of the matrix products, as in `jnp.matmul`. "cosines" has those that make the products at
        "highest".

    Raises:
      TypeError, ValueError: as `ZLoss` does, or `precision` is none.

    >>> float(jaxreg.DeCov(0.5)(jnp.array([[1.0, 1.0], [-1.0, -1.0]])))
    0.5

    Source: Cogswell et al., Reducing overfitting in deep networks by decorrelating representations, 2016.
    """

    _penalty = penalties.decov


@public
class VICRegCovariance(_OfCovariances):
    """The covariance term of VICReg, factor · (1/d) Σ_{i≠j} C_ij² with C = HᵀH/(N − 1), for d features.

    It is `DeCov` in another unit. Use it for embeddings of self-supervised learning. Beside it `VICRegVariance` keeps
    the features from shrinking. The paper weights it by 1, the variance by 25, and the distance of two views by 25.

    Shapes, dtypes, cost and rounding are those of `DeCov`. The gradient is factor · 4/(d(N−1)) H(C without its
    diagonal).

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis, batch_axis, precision: as in `DeCov`.

    Raises:
      TypeError, ValueError: as `DeCov` does.

    >>> float(jaxreg.VICRegCovariance(0.5)(jnp.array([[1.0, 1.0], [-1.0, -1.0]])))
    2.0

    Source: Bardes, Ponce and LeCun, VICReg: variance-invariance-covariance regularization for self-supervised learning,
    2022.
    """

    _penalty = penalties.vicreg_covariance


@public
class VICRegVariance(_OfOutputs):
    """The variance term of VICReg, factor · mean_j (γ − s_j)₊, with the standard deviation s_j of feature j.

    It keeps each feature from collapsing to a constant. s_j = √(variance + ε), with the variance over N − 1. Use it
    beside `VICRegCovariance` for embeddings.

    Samples, features, axes, dtypes and meshes are as in `ZLoss`. The mean is over features. The gradient is −factor ·
    h/((N−1)s) over the number of features, where s < γ, with the samples minus their mean h. It is 0 where s ≥ γ, and
    where a feature is constant. There is no prox.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis, batch_axis: as in `ZLoss`.
      gamma: γ, the least standard deviation that is wanted, a number >= 0 or an array.
      epsilon: ε, a number > 0 or an array, in the unit of a variance.

    Raises:
      TypeError, ValueError: as `ZLoss` does, for `gamma` and `epsilon` too.

    >>> print(f"{jaxreg.VICRegVariance(2.0)(jnp.array([[0.5, 3.0], [0.5, -3.0]])):.4f}")
    0.9900

    Source: Bardes, Ponce and LeCun, VICReg: variance-invariance-covariance regularization for self-supervised learning,
    2022.
    """

    gamma: Any = number(1.0)
    epsilon: Any = number(1e-4, above=0.0)

    _penalty = penalties.vicreg_variance
