"""Regularizers of groups of weights."""

from typing import Any

from jaxreg import penalties, prox
from jaxreg._matrix import Axes
from jaxreg._regularizers._strengths import WithProx, choice, shape


class GroupLasso(WithProx):
    """factor · Σ_g ‖x_g‖, each index along `group_axis` being one group: `jaxreg.penalties.group_lasso`.

    Whole groups become zero under `jaxreg.proximal`: units of a Dense kernel or filters of a convolution by default.

    Args:
      factor: the strength, a number >= 0 or an array.
      group_axis: the axis or axes whose indices count groups; a norm runs over all the others. Of an Equinox kernel
        `(out, in)` the units are 0.
      batch_axis: further axes that count groups, such as layers stacked by `nn.scan`.
      size_weighted: whether each norm is multiplied by √(weights in a group).

    Raises:
      TypeError: an axis is not an int, or `size_weighted` not a bool.
      ValueError: when called, an axis is out of range or named twice.

    >>> kernel = jnp.array([[3.0, 0.3], [4.0, 0.4]])
    >>> float(jaxreg.GroupLasso(2.0)(kernel))
    11.0
    >>> jaxreg.GroupLasso(0.5).prox(kernel, 5.0)
    Array([[1.5, 0. ],
           [2. , 0. ]], dtype=float32)

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.
    """

    group_axis: Axes = choice(-1, kw_only=False, axes=True)
    batch_axis: Axes = choice((), axes=True)
    size_weighted: bool = choice(False)

    _penalty, _prox, _takes_steps = penalties.group_lasso, prox.group_lasso, True


class SparseGroupLasso(WithProx):
    """factor · (l1 · Σ|x| + group · Σ_g ‖x_g‖): `jaxreg.penalties.sparse_group_lasso`.

    Args:
      factor: the strength of the whole, a number >= 0 or an array.
      group_axis, batch_axis, size_weighted: as in `GroupLasso`.
      l1: the weight of Σ|x|, a number >= 0 or an array.
      group: the weight of Σ_g ‖x_g‖, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: as `GroupLasso` does.

    >>> float(jaxreg.SparseGroupLasso(2.0, l1=0.5)(jnp.array([[3.0, 0.0], [4.0, 0.0]])))
    17.0

    Source: Simon, Friedman, Hastie and Tibshirani, A sparse-group lasso, 2013.
    """

    group_axis: Axes = choice(-1, kw_only=False, axes=True)
    l1: Any = shape(1.0)
    group: Any = shape(1.0)
    batch_axis: Axes = choice((), axes=True)
    size_weighted: bool = choice(False)

    _penalty, _prox, _takes_steps = penalties.sparse_group_lasso, prox.sparse_group_lasso, True


class LInf(WithProx):
    """factor · max|x|, which cuts the largest weights down to one level: `jaxreg.penalties.linf`.

    Args:
      factor: the strength, a number >= 0 or an array.

    >>> float(jaxreg.LInf(0.5)(jnp.array([1.0, -2.0, 0.0])))
    1.0

    Source: Parikh and Boyd, Proximal algorithms, 2014.
    """

    _penalty, _prox = penalties.linf, prox.linf
