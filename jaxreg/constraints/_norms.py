"""Constraints of the singular values of matrices."""

from typing import Any

import jax

from jaxreg import _projections as projections
from jaxreg._checks import checked_count
from jaxreg._fields import axes, number, static
from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg.constraints._shipped import Shipped


@public
class SpectralNorm(Shipped):
    """The matrices whose largest singular value is at most `max_value`: larger ones are cut down to it.

    Use it to bound how much a layer can stretch its input, and so the Lipschitz constant of a network. It takes a
    singular value decomposition at each step.

    A kernel of any rank >= 2 is seen as a matrix: `out_axis` are its columns, `batch_axis` counts independent matrices,
    and all the other axes are its rows. It comes back in its shape and dtype. A matrix of k weights whose singular
    values are at most 4√k units in the last place above the bound comes back to the bit. The gradient through the
    projection is the identity inside. NaN and infinity show in their matrix. On a mesh, matrices are dealt out or
    gathered as for `jaxreg.Nuclear`.

    Args:
      max_value: the largest singular value, a number >= 0 or an array.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Raises:
      TypeError: `max_value` is not a number, or an axis is not an int.
      ValueError: `max_value` is negative or not finite. When called: the rank is below 2, an axis is out of range or
        named twice, or no axis is left for the rows.

    >>> print(jaxreg.constraints.SpectralNorm(2.0)(jnp.diag(jnp.array([3.0, 0.5]))).round(4))
    [[2.  0. ]
     [0.  0.5]]

    Source: Lefkimmiatis, Ward and Unser, Hessian Schatten-norm regularization for linear inverse problems, 2013.
    """

    max_value: Any = number(1.0, kw_only=False)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _projection = projections.spectral_norm


@public
class Orthonormal(Shipped):
    """The matrices whose rows, or columns if these are fewer, are orthonormal: UVᵀ is the nearest to UΣVᵀ.

    All singular values become 1. Use it where `jaxreg.OrthogonalRegularizer` is not strict enough, such as for the
    hidden-to-hidden kernel of a recurrent network. It takes a singular value decomposition at each step.

    The matrix view, shapes and dtypes are those of `SpectralNorm`. A matrix of k weights whose singular values are all
    within 4√k units in the last place of 1 comes back to the bit. The gradient through the projection is that of the
    polar factor, and without bound where singular values are 0, which have no nearest direction.

    Args:
      out_axis, batch_axis: as in `SpectralNorm`.

    Raises:
      TypeError, ValueError: as `SpectralNorm` does, for the axes.

    >>> print(jaxreg.constraints.Orthonormal()(jnp.array([[3.0, 0.0], [0.0, 0.5]])).round(4))
    [[1. 0.]
     [0. 1.]]

    Source: Fan and Hoffman, Some metric inequalities in the space of matrices, 1955, for the nearest one.
    """

    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _projection = projections.orthonormal


@public
class MaxRank(Shipped):
    """The matrices of rank at most k: the k largest singular values stay, and the others become 0.

    Use it for a kernel that is to be factorized after training. The set is not convex, so the result depends on the
    start. It takes a singular value decomposition at each step. Singular values that should be 0 are 0 to rounding.

    The matrix view, shapes and dtypes are those of `SpectralNorm`. A matrix of m weights whose further singular values
    are within 4√m units in the last place of the largest one comes back to the bit. Where the k-th value meets the
    next, the decomposition decides, in the same way each time. The gradient through the projection is its derivative
    where the k-th value is larger than the next.

    Args:
      k: the rank, an int >= 0.
      out_axis, batch_axis: as in `SpectralNorm`.

    Raises:
      TypeError, ValueError: `k` is not an int >= 0, or as `SpectralNorm` does, for the axes.

    >>> print(jaxreg.constraints.MaxRank(1)(jnp.diag(jnp.array([3.0, 0.5]))).round(4))
    [[3. 0.]
     [0. 0.]]

    Source: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """

    k: int = static(1, kw_only=False)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", checked_count(self.k, name="k", least=0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return projections.max_rank(x, rank=self.k, out_axis=self.out_axis, batch_axis=self.batch_axis)
