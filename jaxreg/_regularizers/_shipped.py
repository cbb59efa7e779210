"""The base class of the regularizers that jaxreg ships."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxreg._base import Regularizer
from jaxreg._config import BUILT_IN
from jaxreg._fields import Fields
from jaxreg._names import is_mean_over_batch
from jaxreg._numerics import scaled, times_strength


class Shipped(Fields, Regularizer):
    """A strength times a penalty, whose options are the other fields.

    A class declares its fields and its `_penalty`, `_prox` if it has one, and `has_metric_prox`. Its field `strength`
    multiplies the penalty. A class without such a field is the penalty with its options alone.
    """

    _penalty: ClassVar[Callable[..., jax.Array]]
    _prox: ClassVar[Callable[..., jax.Array] | None] = None

    # The numbers that the name of the class stands for in `jaxreg.get`, where they are not the defaults.
    _named_defaults: ClassVar[dict[str, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            BUILT_IN[cls.__name__] = cls

    def _is_mean_over_batch(self) -> bool:
        return is_mean_over_batch(type(self)._penalty)

    def _strength(self) -> tuple[str, Any]:
        """Returns the name of the strength and its value, which is 1 for a class without one."""
        named = self._of_kind("strength")
        return (named[0], self._number(named[0])) if named else ("", 1.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._scaled(type(self)._penalty(x, **self._options()))

    def _scaled(self, penalty: jax.Array) -> jax.Array:
        name, value = self._strength()
        return scaled(value, penalty, name=name) if name else penalty

    def _step(self, step: Any) -> Any:
        """Returns the step of a prox of the penalty without its strength."""
        name, value = self._strength()
        return times_strength(step, value, name=name) if name else step

    @property
    def has_prox(self) -> bool:
        return type(self)._prox is not None

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        prox = type(self)._prox
        if prox is None:
            return super().prox(x, step)
        return prox(x, self._step(step), **self._options())
