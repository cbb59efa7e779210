"""The base class of the regularizers that jaxreg ships, and the kinds of their fields."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxreg._base import Regularizer
from jaxreg._checks import check_bool, checked_number
from jaxreg._config import BUILT_IN
from jaxreg._matrix import checked_axes, groups_in, matrices_in
from jaxreg._numerics import scaled, times_strength


def strength(default: float, *, unset: float | None = None) -> Any:
    """A field for the number >= 0 that multiplies a penalty. None becomes `unset` where that is given."""
    return dataclasses.field(default=default, metadata={"kind": "strength", "unset": unset})


def number(default: float, *, above: float | None = None, unset: float | None = None, kw_only: bool = True) -> Any:
    """A field for a number that is an option of a penalty: >= 0, or greater than `above`."""
    return dataclasses.field(
        default=default, kw_only=kw_only, metadata={"kind": "number", "above": above, "unset": unset}
    )


def axes(default: int | tuple[int, ...], *, kw_only: bool = True) -> Any:
    """A static field for an axis, or several."""
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True, "kind": "axes"})


def static(default: Any, *, kw_only: bool = True) -> Any:
    """A static field. One whose default is a bool must be a bool."""
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True, "kind": "static"})


class Shipped(Regularizer):
    """A strength times a penalty, whose options are the other fields.

    A class declares its fields and its `_penalty`, `_prox` if it has one, and `has_metric_prox`. Its field `strength`
    multiplies the penalty. A class without such a field is the penalty with its options alone.
    """

    _takes_shards = True

    _penalty: ClassVar[Callable[..., jax.Array]]
    _prox: ClassVar[Callable[..., jax.Array] | None] = None

    # The numbers that the name of the class stands for in `jaxreg.get`, where they are not the defaults.
    _named_defaults: ClassVar[dict[str, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            BUILT_IN[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.metadata["kind"]
            if kind in ("strength", "number"):
                unset, above = field.metadata["unset"], field.metadata.get("above")
                value = checked_number(value, name=field.name, unset=unset, above=above)
            elif kind == "axes":
                value = checked_axes(value, name=field.name)
            elif isinstance(field.default, bool):
                check_bool(value, name=field.name)
            object.__setattr__(self, field.name, value)

    def _options(self) -> dict[str, Any]:
        """Returns the options of the penalty. Numbers become arrays: `__init__` has checked them."""
        options = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["kind"] != "strength":
                options[field.name] = jnp.asarray(value) if field.metadata["kind"] == "number" else value
        return options

    def _strength(self) -> tuple[str, Any]:
        """Returns the name of the strength and its value, which is 1 for a class without one."""
        named = [field.name for field in dataclasses.fields(self) if field.metadata["kind"] == "strength"]
        return (named[0], getattr(self, named[0])) if named else ("", 1.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._scaled(type(self)._penalty(x, **self._options()))

    def _seen(self, x: Any) -> str:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if "group_axis" in options:
            return groups_in(x, options["group_axis"], options["batch_axis"])
        return matrices_in(x, options["out_axis"], options["batch_axis"]) if "out_axis" in options else ""

    def _scaled(self, penalty: jax.Array) -> jax.Array:
        name, value = self._strength()
        return scaled(value, penalty, name=name) if name else penalty

    @property
    def has_prox(self) -> bool:
        return type(self)._prox is not None

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        prox = type(self)._prox
        if prox is None:
            return super().prox(x, step)
        name, value = self._strength()
        return prox(x, times_strength(step, value, name=name) if name else step, **self._options())
