"""Regularizers of the differences of neighbors along an axis."""

import math
from typing import Any

from jaxreg import penalties, prox
from jaxreg._checks import checked_count
from jaxreg._fields import number, static, strength
from jaxreg._matrix import positive_axes
from jaxreg._names import public
from jaxreg._regularizers._shipped import Shipped
from jaxreg._shards import whole_shape


class _OfSignals(Shipped):
    """The fields that both regularizers of signals have."""

    factor: Any = strength(0.01)
    axis: int = static(-1, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "axis", checked_count(self.axis, name="axis", least=None))

    def _seen(self, x: Any) -> str:
        shape = list(whole_shape(x))
        length = shape.pop(positive_axes(self.axis, len(shape), name="axis")[0])
        count = math.prod(shape)
        return f"{count} signal{'s' * (count != 1)} of {length}"


@public
class TotalVariation(_OfSignals):
    """The total variation of signals, factor · Σ|x_{i+1} − x_i| along one axis. All other axes count signals.

    Under `jaxreg.proximal` signals become constant on parts, with exactly equal weights and few jumps. Use it where
    neighbors mean something: the taps of a filter, positions, frequencies, or parameters over time.

    The array has a rank >= 1 and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient is factor · (sign(x_i − x_{i−1}) − sign(x_{i+1} −
    x_i)), where a difference of 0 counts for 0. The prox is exact. Its derivative is the mean over each constant part.
    It takes some ten rounds, and more where signals span many orders of magnitude. Each round passes over the array for
    every bit of the length. It is not for Adam's metric.

    On a mesh, each device needs signals whole. Where their axis is divided, they are dealt out to the devices by an
    exchange.

    Args:
      factor: the strength, a number >= 0 or an array.
      axis: the axis along which the neighbors lie. `0` runs along the taps of a convolution of one dimension.

    Raises:
      TypeError: `factor` is not a number, or `axis` is not an int.
      ValueError: `factor` is negative or not finite. When called: the axis is out of range.

    >>> signal = jnp.array([1.0, 2.0, 7.0, 8.0])
    >>> float(jaxreg.TotalVariation(0.5)(signal))
    3.5
    >>> print(jaxreg.TotalVariation(0.5).prox(signal, 2.0))
    [2. 2. 7. 7.]

    Source: Rudin, Osher and Fatemi, Nonlinear total variation based noise removal algorithms, 1992; Chambolle and
    Darbon, On total variation minimization and surface evolution using parametric maximum flows, 2009, and Johnson, A
    dynamic programming algorithm for the fused lasso and L0-segmentation, 2013, for the prox.
    """

    _penalty, _prox = penalties.total_variation, prox.total_variation


@public
class FusedLasso(_OfSignals):
    """The fused lasso, factor · (l1 · Σ|x| + tv · Σ|x_{i+1} − x_i|), with differences along one axis.

    Under `jaxreg.proximal` signals become constant on parts, and exactly zero on many of them. Use it where weights are
    to be sparse and neighbors alike.

    Shapes and dtypes are those of `TotalVariation`. The gradient is the sum of those of `L1` and `TotalVariation`. The
    prox is that of `TotalVariation`, then that of `L1`.

    Args:
      factor: the strength of the whole, a number >= 0 or an array.
      axis: as in `TotalVariation`.
      l1: the weight of Σ|x|, a number >= 0 or an array.
      tv: the weight of Σ|x_{i+1} − x_i|, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: as `TotalVariation` does, for `l1` and `tv` too.

    >>> float(jaxreg.FusedLasso(2.0, l1=0.5)(jnp.array([1.0, 1.0, 4.0, 2.0])))
    18.0

    Source: Tibshirani, Saunders, Rosset, Zhu and Knight, Sparsity and smoothness via the fused lasso, 2005; Friedman,
    Hastie, Höfling and Tibshirani, Pathwise coordinate optimization, 2007, for the prox.
    """

    l1: Any = number(1.0)
    tv: Any = number(1.0)

    _penalty, _prox = penalties.fused_lasso, prox.fused_lasso
