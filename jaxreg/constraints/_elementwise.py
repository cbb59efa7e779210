"""Constraints of single weights."""

from typing import Any

import jax
import numpy as np

from jaxreg import _projections as projections
from jaxreg._fields import bound
from jaxreg._names import public
from jaxreg.constraints._shipped import Shipped


def _non_negative(x: jax.Array) -> jax.Array:
    return projections.box(x, lower=0.0, upper=np.inf)


@public
class NonNeg(Shipped):
    """The weights that are >= 0: a negative one becomes 0.

    Use it for weights that are amounts or rates, such as those of a non-negative factorization. `L1(l1) + NonNeg()` is
    the non-negative lasso, whose prox is exact, in Adam's metric too.

    The array has any shape and a real floating-point dtype, and comes back in both. The gradient through the projection
    is 1 for weights >= 0 and 0 for others. A NaN or an infinity comes back as NaN.

    Raises:
      TypeError: When called: `x` is no array of real floating-point numbers.

    >>> jaxreg.constraints.NonNeg()(jnp.array([1.0, -2.0]))
    Array([1., 0.], dtype=float32)

    Source: `keras.constraints.NonNeg`, 2015; Lee and Seung, Learning the parts of objects by non-negative matrix
    factorization, 1999.
    """

    _projection = _non_negative

    def _is_separable(self) -> bool:
        return True


@public
class Box(Shipped):
    """The weights in [lower, upper]: others go to the nearer end.

    Use it to bound weights, such as before quantization, or as in the first Wasserstein GAN.

    Shapes and dtypes are those of `NonNeg`. The gradient through the projection is 1 inside and 0 outside. A NaN or an
    infinity comes back as NaN.

    Args:
      lower: the least value, a number or an array, in the unit of the weights. None and −inf are no bound.
      upper: the largest value. None and inf are no bound. Both are rounded to the dtype of the weights.

    Raises:
      TypeError, ValueError: a bound is no number or NaN, or `lower` is greater than `upper`.

    >>> jaxreg.constraints.Box(-0.5, 1.0)(jnp.array([3.0, -2.0, 0.25]))
    Array([ 1.  , -0.5 ,  0.25], dtype=float32)

    Source: Arjovsky, Chintala and Bottou, Wasserstein GAN, 2017.
    """

    lower: Any = bound()
    upper: Any = bound()

    _projection = projections.box

    _in_order = ("lower", "upper")

    def __post_init__(self) -> None:
        for name, unbounded in (("lower", -np.inf), ("upper", np.inf)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, unbounded)
        super().__post_init__()

    def get_config(self) -> dict[str, Any]:
        # JSON has no infinity.
        return {name: None if np.isinf(value) else value for name, value in super().get_config().items()}

    def _is_separable(self) -> bool:
        return True
