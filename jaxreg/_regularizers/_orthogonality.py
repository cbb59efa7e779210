"""Regularizers of the angles between the rows, or columns, of a kernel."""

from typing import Any

import jax

from jaxreg import penalties
from jaxreg._angles import check_sample
from jaxreg._fields import axes, static, strength
from jaxreg._matrix import Axes, Mode, check_mode
from jaxreg._names import public
from jaxreg._plans import Precision, check_precision
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
