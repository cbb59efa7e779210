"""The base class of the constraints that jaxreg ships."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxreg._config import BUILT_IN
from jaxreg._constraint import Constraint
from jaxreg._fields import Fields


class Shipped(Fields, Constraint):
    """A set whose options are its fields. A class declares these, and the `_projection` that takes them."""

    _projection: ClassVar[Callable[..., jax.Array]]

    # The numbers that the name of the class stands for in `jaxreg.get`, where they are not the defaults.
    _named_defaults: ClassVar[dict[str, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        BUILT_IN[cls.__name__] = cls

    def __call__(self, x: jax.Array) -> jax.Array:
        return type(self)._projection(x, **self._options())
