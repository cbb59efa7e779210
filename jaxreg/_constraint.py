"""The base class of constraints: a set, as the projection on it."""

import dataclasses
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp

from jaxreg._base import added, checked_scale, is_scale
from jaxreg._term import Term


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Constraint(Term, root="jaxreg.constraints.Constraint"):
    """A set that weights are kept in: a callable from an array to the nearest array of the set, and a pytree.

    Rules take constraints beside regularizers. `jaxreg.proximal` and the proximal optimizers project after each step,
    in the Euclidean metric under every optimizer, as Keras does. `rules.prox(params)` projects a tree at hand.

    To write one, subclass it, annotate the numbers as fields, and define `__call__`. No decorator is needed. It returns
    an array of the shape and dtype of `x`, and should return what lies in the set as it is, to the bit.

    >>> class Rounded(jaxreg.constraints.Constraint):
    ...     spacing: float = 0.5
    ...
    ...     def __call__(self, x):
    ...         return jnp.round(x / self.spacing) * self.spacing
    >>> Rounded(0.25)(jnp.array([0.3, -0.9]))
    Array([ 0.25, -1.  ], dtype=float32)

    Fields are as in `jaxreg.Regularizer`: floats and arrays are leaves, and ints are choices. A constraint has no
    strength, so a multiple of it is itself. In a loss it is an error, because it has no value to add. A class may keep
    something for each parameter from step to step, as a regularizer may, by `init` and `updated`.

    A sum with a penalty, such as `L1(0.1) + NonNeg()`, has a prox where that has a closed form.

    Subclass this class only. The constraints that jaxreg ships are not for subclassing.

    Raises:
      TypeError: on the definition of a class, if it has `__slots__` or subclasses a constraint that jaxreg ships.
    """

    has_metric_prox: ClassVar[bool] = False

    def _is_penalty(self) -> bool:
        return False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the array of the set that is nearest to `x`."""
        return super().__call__(x)

    @property
    def has_prox(self) -> bool:
        return True

    def prox(self, x: jax.Array, step: Any = None, **memory: Any) -> jax.Array:
        """Returns `self(x)`. The step of a prox does not matter to a set."""
        del step
        projection: Any = self
        return projection(jnp.asarray(x), **memory)

    def __add__(self, other: Any) -> Any:
        return added(self, other)

    def __radd__(self, other: Any) -> Any:
        return added(other, self)

    def __mul__(self, scale: Any) -> "Constraint":
        if not is_scale(scale):
            return NotImplemented
        checked_scale(scale)
        return self

    __rmul__ = __mul__
