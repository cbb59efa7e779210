"""The base class of the constraints that jaxreg ships."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

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

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        names = [field.name for field in dataclasses.fields(cls)]
        if "axis" in kwargs and "axis" not in names and "group_axis" in names:
            raise TypeError(
                f"{cls.__name__} takes no `axis`, as Keras calls the axes within a group. It takes `group_axis`, the "
                f"axes whose indices count the groups, got axis={kwargs['axis']!r}. Keras's axis=0 of a Dense kernel "
                "and axis=[0, 1, 2] of a Conv kernel are group_axis=-1, the default"
            )
        return object.__new__(cls)

    def __call__(self, x: jax.Array) -> jax.Array:
        return type(self)._projection(x, **self._options())
