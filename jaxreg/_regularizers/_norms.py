"""Regularizers that are norms of a whole array, of its weights or of the singular values of its matrices."""

from typing import Any

from jaxreg import penalties, prox
from jaxreg._fields import axes, strength
from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg._regularizers._kept import _OfBlocks
from jaxreg._regularizers._shipped import Shipped


@public
class LInf(Shipped):
    """The largest magnitude, factor · max|x|.

    It pushes only the largest weights. Under `jaxreg.proximal` they are cut down to one level. Use it to bound the
    range of weights, such as before quantization.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient is factor · sign(x) at the largest weight, in equal
    parts where several are the largest, and 0 at a zero array. The penalty of an empty array is 0. The prox is x minus
    its projection on the l1 ball of radius step · factor.

    Args:
      factor: the strength, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0.

    >>> float(jaxreg.LInf(0.5)(jnp.array([1.0, -2.0, 0.0])))
    1.0
    >>> jaxreg.LInf(2.0).prox(jnp.array([3.0, -0.5, -2.0]), 1.0)
    Array([ 1.5, -0.5, -1.5], dtype=float32)

    Source: Parikh and Boyd, Proximal algorithms, 2014; Duchi et al., Efficient projections onto the l1-ball for
    learning in high dimensions, 2008, for the prox.
    """

    factor: Any = strength(0.01)

    _penalty, _prox = penalties.linf, prox.linf


@public
class Nuclear(Shipped):
    """The nuclear norm, factor · Σσ: the sum of the singular values of a matrix.

    Under `jaxreg.proximal` it makes singular values zero, so the rank becomes low. Use it to find a low-rank kernel or
    update. It takes a singular value decomposition at each step.

    A kernel of any rank >= 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts independent matrices,
    whose norms add up, and all the other axes are its rows. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient is factor · UVᵀ over the singular values that are
    not zero to rounding, so 0 at a zero matrix. The prox with step η lowers every singular value by η · factor, down to
    0.

    On a mesh, each device needs matrices whole. Where a device has parts of several matrices of a batch, they are dealt
    out to the devices, by an exchange for each divided axis. A single matrix is gathered once, and decomposed by all
    devices that share it.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Raises:
      TypeError: `factor` is not a number, or an axis is not an int.
      ValueError: `factor` is negative or not finite. When called: the rank is below 2, an axis is out of range or named
        twice, or no axis is left for the rows.

    >>> print(f"{jaxreg.Nuclear(0.5)(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    3.5000
    >>> print(jaxreg.Nuclear(0.5).prox(jnp.diag(jnp.array([3.0, 0.5])), 2.0).round(4))
    [[2. 0.]
     [0. 0.]]

    Source: Fazel, Matrix rank minimization with applications, 2002; Cai, Candès and Shen, A singular value thresholding
    algorithm for matrix completion, 2010, for the prox.
    """

    factor: Any = strength(0.01)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _penalty, _prox = penalties.nuclear, prox.nuclear


@public
class Spectral(_OfBlocks):
    """The spectral norm, factor · σ₁: the largest singular value of a matrix.

    It bounds how much a layer can stretch its input. Use it for smoother networks and a smaller Lipschitz constant. It
    takes a singular value decomposition at each step, or with `kept` one multiplication of a block of vectors.

    The matrix view, shapes and dtypes are those of `Nuclear`. The gradient is factor · u₁v₁ᵀ, or the mean of these
    where several singular values are the largest, and 0 at a zero matrix. The prox cuts the largest singular values
    down to one level, as that of `LInf` cuts weights.

    On a mesh, the singular values of a divided matrix come from subspace iteration, for which only a few vectors are
    moved. Where more than eight of them meet at the largest, or it does not converge, and for the prox, matrices are
    gathered as in `Nuclear`.

    With `kept=True` it has memory: a block of sixteen vectors for each matrix, which XᵀX multiplies once a step. The
    value is the largest singular value that the block shows, at most σ₁, and exact where the smaller side is at most
    sixteen. The gradient is u₁v₁ᵀ for that one, or for one of those that meet. There is no prox then. The memory is
    kept and renewed as in `SRIP`, also on a mesh.

    Args:
      factor: the strength, a number >= 0 or an array.
      kept: whether a block of vectors is kept from step to step.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose norms add up.

    Raises:
      TypeError, ValueError: as `Nuclear` does; `kept` is not a bool. When called: `memory` is missing or has another
        shape, or is given without `kept`.

    >>> print(f"{jaxreg.Spectral(0.5)(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    2.0000
    >>> kernel, kept = jnp.diag(jnp.array([3.0, -4.0])), jaxreg.Spectral(0.5, kept=True)
    >>> print(f"{kept(kernel, memory=kept.init(kernel)):.4f}")
    2.0000

    Source: Yoshida and Miyato, Spectral norm regularization for improving the generalizability of deep learning, 2017.
    """

    _penalty, _prox, _from_identity = penalties.spectral, prox.spectral, False


@public
class StableRank(Shipped):
    """The stable rank, factor · Σσ²/σ₁²: a smooth stand-in for the rank of a matrix. The scale does not matter.

    It lies between 1 and the rank, and is equal to the smaller side of a matrix with orthonormal rows or columns. It
    draws the energy of a matrix into its largest singular vectors, and leaves σ₁ free. Use it to make a layer easy to
    compress, or beside `Spectral`: bounds on generalization hold the product of both.

    The matrix view, shapes and dtypes are those of `Nuclear`, and so is the cost, a singular value decomposition at
    each step. The gradient is 2 · factor · (X − s σ₁ u₁v₁ᵀ)/σ₁² with the stable rank s, which is orthogonal to X. A
    zero matrix has the penalty 0 and the gradient 0. There is no prox. On a mesh, matrices are dealt out whole, and a
    single one is gathered.

    Args:
      factor: the strength, a number >= 0 or an array.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices, whose stable ranks add up.

    Raises:
      TypeError, ValueError: as `Nuclear` does.

    >>> print(f"{jaxreg.StableRank(0.5)(jnp.diag(jnp.array([3.0, -4.0]))):.4f}")
    0.7812

    Source: Rudelson and Vershynin, Sampling from large matrices, 2007; Sanyal, Torr and Dokania, Stable rank
    normalization for improved generalization in neural networks and GANs, 2020.
    """

    factor: Any = strength(0.01)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _penalty = penalties.stable_rank
