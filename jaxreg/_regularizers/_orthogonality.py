"""Regularizers of the angles between the rows, or columns, of a kernel, and of how far they are from orthonormal."""

from typing import Any

import jax

from jaxreg import penalties, prox
from jaxreg._angles import check_sample, checked_power, checked_sharpness
from jaxreg._checks import checked_count
from jaxreg._convolution import checked_stride, seen_in
from jaxreg._fields import axes, static, strength
from jaxreg._matrix import Axes, Mode, check_mode
from jaxreg._names import public
from jaxreg._plans import Precision, check_precision
from jaxreg._regularizers._kept import _OfBlocks
from jaxreg._regularizers._shipped import Shipped


class _OfAngles(Shipped):
    """The fields that both regularizers of angles have."""

    factor: Any = strength(0.01)
    mode: Mode = static("rows", kw_only=False)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())
    precision: Precision = static(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mode(self.mode)
        check_precision(self.precision)

    def _shares_exchanges(self) -> bool:
        return True


@public
class OrthogonalRegularizer(_OfAngles):
    """The mean absolute cosine between distinct rows (or columns), factor · Σ_{i≠j} |cos(x_i, x_j)| / (n(n−1)).

    Use it for units that differ from each other. The units of a Dense kernel `(in, out)` and of a convolution `HWIO`
    are the columns, so take `mode="columns"` for them. Keras's default compares the rows, which are the inputs.

    Among n > d vectors in d dimensions, not every pair can be orthogonal. The mean is then at least 2(n−d)/(n(n−1)) for
    n ≤ 2d, and vectors that repeat each other can score best. `FramePotential` is least for vectors that are spread
    evenly.

    A kernel of any rank >= 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts independent matrices,
    whose means add up, and all the other axes are its rows. The penalty is a scalar in at least float32, and the
    gradient has the dtype of the array. It is orthogonal to each vector. The cosine is taken with norms of at least
    1e-7. The subgradient of |·| at 0 is 0, so a zero vector has the cosine 0 with every other vector, and the gradient
    0. A single vector has no pair, and the penalty 0. There is no prox.

    Value and gradient take one pass. The vectors are contracted along whichever axis they lie, and the kernel is not
    transposed, unless the axes of its rows or of its columns lie apart. Up to some number of vectors the pass computes
    the whole Gram matrix, in 4n²d FLOPs. Above, it computes panels of the matrix one after another, in little more than
    3n²d FLOPs and memory for two copies of the kernel on CPUs, three on accelerators. On CPUs that number is 1024 for
    vectors of as many components or more, and else 512; on GPUs and TPUs it is 4096. With `sample=m` the pass takes a
    random subset of m vectors.

    On a mesh the vectors are divided over the devices, and go around them in a ring, of which symmetry saves half. Each
    device does its share of the work, holds a few arrays of the size of its share of the kernel, and receives about one
    kernel. Vectors whose components are divided are exchanged first, and a kernel that all devices have is divided.
    Stacked matrices that are divided stay where they are. A mesh is known by the type of the kernel, or by
    `jax.set_mesh`. Inside `jax.shard_map` it takes `Rules.with_specs`.

    The gradient is made of the signs of cosines, and a cosine near 0 takes the wrong sign where products are rounded.
    On accelerators `precision` chooses between time and the error of the gradient, which is here in norm, simulated for
    random vectors:

    - None, JAX's default: one pass of bfloat16 on TPUs, 5 %; TF32 on recent NVIDIA GPUs, 2 %.
    - "cosines": the products that make the cosines at "highest", or in six passes of bfloat16 on GPUs, and those that
      make the gradient at the default. 0.2 %, for up to 2.7 times the work of the default in products.
    - "highest": float32 everywhere, below 0.1 %, for six times the work.

    The cosines of bfloat16 kernels are taken from the kernel as it is, whose products are exact. So their gradient is
    right to 0.2 % by default, at the price of the default. On CPUs all products are float32, and the error is that of
    rounding: a cosine within 1e-7 of 0 may have either sign.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode: "rows" or "columns", the vectors that are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.
      precision: that of the matrix products, as in `jnp.matmul`, or "cosines", see above. Sums are taken in at least
        float32.
      sample: the number of vectors from which to estimate the mean without bias, at least 2. None takes all. The random
        key comes from `Rules.__call__`, or from `add_penalty_gradients`.

    Raises:
      TypeError: `factor` is not a number, or an axis or `sample` is not an int.
      ValueError: `factor` is negative or not finite, `mode` is neither of the two, `precision` is none of JAX's nor
        "cosines", or `sample` is less than 2. When called: the rank is below 2, an axis is out of range or named twice,
        no axis is left for the rows, or `sample` has no key.

    >>> kernel = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.OrthogonalRegularizer(0.1, mode='columns')(kernel):.4f}")
    0.0707

    Source: `keras.regularizers.OrthogonalRegularizer`, 2020; Brock et al., Neural photo editing with introspective
    adversarial networks, 2017.
    """

    sample: int | None = static(None)

    _penalty = penalties.orthogonal

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sample(self.sample)

    @property
    def needs_key(self) -> bool:
        return self.sample is not None

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return self._scaled(penalties.orthogonal(x, **self._options(), key=key))


@public
class FramePotential(_OfAngles):
    """The mean squared cosine between distinct rows (or columns), minus the least value that it can have.

    For n ≤ d vectors in d dimensions it is factor · Σ_{i≠j} cos²(x_i, x_j) / (n(n−1)), and 0 for orthogonal vectors.
    For n > d it is factor · ‖UᵀU − (n/d)I‖² / (n(n−1)), with the unit vectors in the rows of U. That is the same mean
    minus the Welch bound (n−d)/(d(n−1)), and 0 exactly for a tight frame, whose vectors are spread evenly. Every local
    minimum is a global one. Use it where there are more units than dimensions, or for a smooth penalty.

    The matrix view, the modes, shapes and dtypes are those of `OrthogonalRegularizer`. The gradient is orthogonal to
    each vector, and finite at a zero vector. A single vector has the penalty 0. There is no prox. It takes the smaller
    of the two Gram matrices, in 4nd·min(n, d) FLOPs, or 3nd·min(n, d) where that is large.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode, out_axis, batch_axis, precision: as in `OrthogonalRegularizer`.

    Raises:
      TypeError, ValueError: as `OrthogonalRegularizer` does.

    >>> kernel = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.FramePotential(0.1, mode='columns')(kernel):.4f}")
    0.0500
    >>> angles = 2.0 * jnp.pi * jnp.arange(3.0) / 3.0
    >>> evenly_spread = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    >>> print(f"{jaxreg.FramePotential(0.1)(evenly_spread):.4f}")
    0.0000

    Source: Benedetto and Fickus, Finite normalized tight frames, 2003.
    """

    _penalty = penalties.frame_potential


@public
class PFrame(_OfAngles):
    """The mean of a power of cosines between distinct rows (or columns), factor · Σ_{i≠j} |cos|^p / (n(n−1)).

    It is the p-frame potential. With p = 4 it is least for vectors that are spread more evenly than a tight frame
    needs: the six vectors of an icosahedron in three dimensions, for which the mean is 1/25. The larger p, the more the
    nearest pairs count. With p = 1 it is `OrthogonalRegularizer`, and with p = 2 the mean of which `FramePotential` is
    the excess. Use p = 4 where there are more units than dimensions, and no two should be alike.

    The least value for p = 4 is 0 for n ≤ d vectors in d dimensions. For more it is at least (3n/(d(d+2)) − 1)/(n−1),
    where that is positive. That is attained where Σ ⟨x_i, y⟩⁴ is the same for all unit vectors y, as for the
    icosahedron. There are local minima.

    The matrix view, the modes, shapes, dtypes and the cost are those of `OrthogonalRegularizer`. The gradient is
    orthogonal to each vector, and 0 at a zero vector. A single vector has the penalty 0. There is no prox.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode, out_axis, batch_axis, precision: as in `OrthogonalRegularizer`.
      p: the power, a static number >= 1. Below 2 the curvature is not bounded where vectors are orthogonal.

    Raises:
      TypeError, ValueError: `p` is not a finite number >= 1; else as `OrthogonalRegularizer` does.

    >>> kernel = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.PFrame(0.1, mode='columns')(kernel):.4f}")
    0.0250

    Source: Ehler and Okoudjou, Minimization of the probabilistic p-frame potential, 2012.
    """

    p: float = static(4)

    _penalty = penalties.p_frame

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "p", checked_power(self.p))


@public
class MutualCoherence(_OfAngles):
    """The largest absolute cosine between distinct rows (or columns), factor · max_{i≠j} |cos(x_i, x_j)|.

    With a `sharpness` t it is the smooth maximum, factor · (1/t) log Σ_{i≠j} exp(t |cos|). That lies above the maximum
    by at most log(n(n−1))/t, and pushes all near pairs apart. Use it where the worst pair matters, as in a dictionary
    for sparse codes. The maximum itself moves only the pairs that attain it, so a sharpness of about 20 is a better
    start. The sharpness is static: a program is compiled for each value, and no schedule can be given.

    The least value for n > d vectors in d dimensions is at least the Welch bound √((n−d)/(d(n−1))), which equiangular
    tight frames attain. For n ≤ d it is 0.

    The matrix view, the modes, shapes and dtypes are those of `OrthogonalRegularizer`. The gradient is orthogonal to
    each vector, and 0 at a zero vector. Where several pairs are at the maximum, they share it in equal parts. A single
    vector has the penalty 0. There is no prox. Rows of cosines are made in blocks of 1024, for the maximum and again
    for the gradient, in 6n²d FLOPs. Second derivatives in reverse mode keep n × n arrays. On a mesh each device
    compares its share of the vectors with all of them, and receives a copy of the kernel.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode, out_axis, batch_axis: as in `OrthogonalRegularizer`.
      precision: that of the matrix products, as in `jnp.matmul`. "cosines" means "highest" here.
      sharpness: a static number > 0 for the smooth maximum, or None for the maximum.

    Raises:
      TypeError, ValueError: `sharpness` is not a finite number > 0; else as `OrthogonalRegularizer` does.

    >>> kernel = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> print(f"{jaxreg.MutualCoherence(0.1)(kernel):.4f}")
    0.0707
    >>> print(f"{jaxreg.MutualCoherence(0.1, sharpness=100.0)(kernel):.4f}")
    0.0721

    Source: Donoho and Elad, Optimally sparse representation in general (nonorthogonal) dictionaries, 2003; Bansal, Chen
    and Wang, Can we gain more from orthogonality regularizations in training deep CNNs?, 2018, as a penalty.
    """

    sharpness: float | None = static(None)

    _penalty = penalties.mutual_coherence

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sharpness", checked_sharpness(self.sharpness))

    def _shares_exchanges(self) -> bool:
        return False


@public
class OffDiagonal(_OfAngles):
    """The squared products of distinct rows (or columns), factor · Σ_{i≠j} ⟨x_i, x_j⟩². The lengths are free.

    It makes vectors orthogonal and does not hold their lengths, as BigGAN has it. It shrinks them, though, since
    shorter vectors have smaller products. Where weights are above 1e6, products below 1e-19 of the largest possible one
    count as 0. Use it for orthogonal units whose lengths are free. For the angles alone, take `FramePotential` or
    `OrthogonalRegularizer`.

    The matrix view, the modes, shapes and dtypes are those of `OrthogonalRegularizer`. It is a sum over pairs, and not
    a mean, so its strength depends on their number. The gradient with respect to x_i is 4 · factor · Σ_{j≠i} ⟨x_i, x_j⟩
    x_j, of which BigGAN's released code applies half. A single vector has the penalty 0. There is no prox. The cost is
    that of `OrthogonalRegularizer`.

    Args:
      factor: the strength, a number >= 0 or an array.
      mode, out_axis, batch_axis: as in `OrthogonalRegularizer`. The paper compares the filters of a convolution, which
        are the columns here.
      precision: that of the matrix products, as in `jnp.matmul`. "cosines" has those that make the products at
        "highest".

    Raises:
      TypeError, ValueError: as `OrthogonalRegularizer` does.

    >>> float(jaxreg.OffDiagonal(0.5, mode="columns")(jnp.array([[1.0, 1.0], [0.0, 1.0]])))
    1.0

    Source: Brock, Donahue and Simonyan, Large scale GAN training for high fidelity natural image synthesis, 2019.
    """

    _penalty = penalties.off_diagonal


@public
class SoftOrthogonal(Shipped):
    """The distance from orthonormal vectors, factor · ‖XᵀX − I‖², or factor · ‖XXᵀ − I‖² where the rows are fewer.

    It draws all singular values to 1. Use it for a layer that keeps the lengths of its inputs, or of its gradients. The
    smaller of the two products is taken: on the larger side ‖·‖² is greater by the difference of the sizes, and the
    gradient is the same. So the double form, which adds both, is twice this one and a constant. Without `squared` it is
    the norm, whose pull does not vanish near the minimum.

    A kernel of any rank >= 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts independent matrices,
    whose penalties add up, and all the other axes are its rows. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient is 4 · factor · X(XᵀX − I), so 0 at a zero matrix
    too. Without `squared` it is that over twice the norm, and 0 where the norm is 0. A step of gradient descent of
    size η with 4η · factor = ½ is a Newton–Schulz step towards the orthonormal matrix. The cost is 4nd·min(n, d) FLOPs
    for value and gradient.

    The prox with step η replaces each singular value σ by the largest root of 4η · factor · (s³ − s) + s = σ, and takes
    a singular value decomposition. It is not unique at a singular value of 0. Without `squared` there is none.

    On a mesh, the longer side is divided over the devices, and the products of the shorter one are added up.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.
      squared: whether the norm is squared.
      precision: that of the matrix products, as in `jnp.matmul`. "cosines" means "highest" here.

    Raises:
      TypeError: `factor` is not a number, an axis is not an int, or `squared` is not a bool.
      ValueError: `factor` is negative or not finite, or `precision` is none of JAX's nor "cosines". When called: the
        rank is below 2, an axis is out of range or named twice, or no axis is left for the rows.

    >>> float(jaxreg.SoftOrthogonal(0.5)(jnp.diag(jnp.array([2.0, 1.0]))))
    4.5
    >>> float(jaxreg.SoftOrthogonal(0.5, squared=False)(jnp.diag(jnp.array([2.0, 1.0]))))
    1.5

    Source: Xie, Xiong and Pu, All you need is beyond a good init, 2017; Bansal, Chen and Wang, Can we gain more from
    orthogonality regularizations in training deep CNNs?, 2018. Without `squared`: Zhang et al., AdaLoRA, 2023.
    """

    factor: Any = strength(0.01)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())
    squared: bool = static(True)
    precision: Precision = static(None)

    _penalty = penalties.soft_orthogonal

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.precision)

    @property
    def has_prox(self) -> bool:
        return self.squared

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        if not self.squared:
            return super().prox(x, step)
        return prox.soft_orthogonal(x, self._step(step), out_axis=self.out_axis, batch_axis=self.batch_axis)


@public
class SRIP(_OfBlocks):
    """The spectral restricted isometry property, factor · max |σ² − 1|: the spectral norm of XᵀX − I.

    It draws to 1 the singular value whose square is farthest from 1. Use it so that no direction is stretched or shrunk
    much more than others. `SoftOrthogonal` has the sum over all directions. It takes the smaller one of XᵀX and XXᵀ,
    and makes neither: X and Xᵀ multiply a block of sixteen vectors, or of as many as the smaller side has.

    With `kept=True` it has memory, the block of each matrix. A call takes the value from the block as it is, and
    `updated` multiplies it by XᵀX − I once. So the block follows the weights while these are trained. A compiler shares
    the product with X of both, where they are in one program. Prefer this in training. Without `kept`, each call begins
    with the same random vectors and multiplies them as often as `steps` says.

    For 64 × 128 and 128 × 96 weights and Adam, the norm after training was at most 4 % above that under exact gradients
    with `kept`, 5 % with 20 steps, 19 % with 10, and several times as large with 2. The value is that in the span of
    the block, so it is never above the norm. It is exact where the smaller side is at most sixteen.

    A kernel of any rank >= 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts independent matrices,
    whose penalties add up, and all the other axes are its rows. The penalty is a scalar in at least float32, and the
    gradient has the dtype of the array. The gradient is 2 · factor · sign(σ² − 1) σuvᵀ with the singular vectors of
    that σ. Where several meet, it is that of one of them. Where squares are as far above 1 as below, one above is
    taken. A zero matrix has the penalty `factor` and the gradient 0. Second derivatives hold the block, so they are
    exact where it spans everything. There is no prox.

    The memory is an array (matrices, smaller side, vectors) in at least float32, with orthonormal vectors. The
    transforms keep it in their state and renew it. In a loop of your own `rules.init` makes it and `rules.updated`
    renews it. On a mesh all devices have it whole, also inside `jax.shard_map` with `Rules.with_specs`, and no
    matrix is moved, only its products with blocks. Where the next block would not be finite, the old one stays.

    Args:
      factor: the strength, a number >= 0 or an array.
      steps: how often XᵀX − I multiplies the block in a call, or with `kept` in `init`.
      kept: whether the block is kept from step to step.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Raises:
      TypeError: `factor` is not a number, `steps` or an axis is not an int, or `kept` is not a bool.
      ValueError: `factor` is negative or not finite, or `steps` is less than 1. When called: the rank is below 2, an
        axis is out of range or named twice, no axis is left for the rows, or `memory` is missing, has another shape, or
        is given without `kept`.

    >>> float(jaxreg.SRIP(0.5)(jnp.diag(jnp.array([2.0, 1.0]))))
    1.5
    >>> kernel, kept = jnp.diag(jnp.array([2.0, 1.0])), jaxreg.SRIP(0.5, kept=True)
    >>> memory = kept.init(kernel)
    >>> float(kept(kernel, memory=memory))
    1.5
    >>> memory = kept.updated(kernel, memory)

    Source: Bansal, Chen and Wang, Can we gain more from orthogonality regularizations in training deep CNNs?, 2018.
    """

    steps: int = static(20)

    _penalty, _from_identity = penalties.srip, True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", checked_count(self.steps, name="steps", least=1))

    def _first_steps(self) -> int:
        return self.steps


@public
class ConvOrthogonal(Shipped):
    """The distance of a convolution from an orthogonal map of images, factor · ‖conv(K, K) − I‖².

    A kernel whose filters are orthogonal is not an orthogonal convolution: copies of the filters that are shifted by
    the stride overlap too. This penalty is 0 where the convolution, as a matrix with a row for each filter at each
    place, has orthonormal rows, or orthonormal columns where these are fewer. The layer then keeps the lengths of
    gradients, or of its inputs. Use it where `SoftOrthogonal` of the kernel as a matrix is not enough. With a stride
    of the size of the kernel both are the same.

    The array is the kernel of a convolution over any number of axes of space, by default `HWIO`, with a real
    floating-point dtype. All further axes count space. The kernel is convolved with itself at the given stride, with
    padding ⌊(k−1)/stride⌋ · stride, and compared with the identity in the middle. N² times the value is ‖AAᵀ − I‖² for
    the matrix A of the convolution of a periodic image with N² places of output, if these are so many that the kernel
    does not meet itself around it. With C inputs, at most C · ∏ min(k, stride) rows can be orthonormal. Where there are
    more filters, the columns are compared: the form of the rows is greater than theirs by the number of filters that
    are too many, up to the rounding of that number. The penalty is a scalar in at least float32, and the gradient has
    the dtype of the array. There is no prox.

    A program has two products and more for each shift at which copies overlap, so large kernels at a small stride
    compile slowly: 7 × 7 at stride 1 takes some four seconds, and 11 × 11 eleven. The kernel of a grouped convolution
    holds several: reshape that of g groups to (k, k, C/g, g, M/g), with `in_axis=-3, batch_axis=-2`, in a function of
    your own.

    On a mesh every device gathers the kernel and works with all of it. The gradient is divided as the kernel.

    Args:
      factor: the strength, a number >= 0 or an array.
      stride: the stride of the layer, the same along all axes of space.
      in_axis, out_axis: the axes of the inputs and of the filters. Equinox and PyTorch have `OIHW`, which is
        `in_axis=1, out_axis=0`.
      batch_axis: the axis or axes that count independent kernels, whose penalties add up.
      precision: that of the products, as in `jax.lax.conv_general_dilated`. "cosines" means "highest" here.

    Raises:
      TypeError: `factor` is not a number, or `stride` or an axis is not an int.
      ValueError: `factor` is negative or not finite, `stride` is less than 1, or `precision` is none of JAX's nor
        "cosines". When called: the rank is below 3, an axis is out of range or named twice, or no axis is left for
        space.

    >>> kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1, 0, 0].set(2.0)
    >>> float(jaxreg.ConvOrthogonal(0.5)(kernel))
    4.5

    Source: Wang, Chen, Chakraborty and Yu, Orthogonal convolutional neural networks, 2020.
    """

    factor: Any = strength(0.01)
    stride: int = static(1)
    in_axis: Axes = axes(-2)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())
    precision: Precision = static(None)

    _penalty = penalties.conv_orthogonal

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stride", checked_stride(self.stride))
        check_precision(self.precision)

    def _seen(self, x: Any) -> str:
        return seen_in(x, self.in_axis, self.out_axis, self.batch_axis)
