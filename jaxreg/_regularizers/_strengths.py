"""What the fields of regularizers have in common: which are strengths, which are choices, and what is checked."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxreg._base import Regularizer
from jaxreg._matrix import checked_axes
from jaxreg._numerics import checked_strength, describe, scaled, times_strength


class Strengths(Regularizer):
    """Fields with a metadata entry `unset` are numbers; that entry is what None stands for, if anything."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "unset" in field.metadata:
                marks = field.metadata
                value = checked_strength(value, name=field.name, default=marks["unset"], above=marks["above"])
            elif field.metadata.get("axes"):
                value = checked_axes(value, name=field.name)
            elif isinstance(field.default, bool) and not isinstance(value, bool):
                raise TypeError(f"`{field.name}` must be a bool, got {describe(value)}")
            object.__setattr__(self, field.name, value)


def strength(default: float, *, unset: float | None = None) -> Any:
    """A number >= 0."""
    return dataclasses.field(default=default, metadata={"unset": unset, "above": None})


def shape(default: float, *, above: float | None = None) -> Any:
    """A keyword-only number that shapes a penalty: >= 0, or greater than `above`."""
    return dataclasses.field(default=default, kw_only=True, metadata={"unset": None, "above": above})


def choice(default: Any, *, kw_only: bool = True, axes: bool = False) -> Any:
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True, "axes": axes})


class OfPenalty(Strengths):
    """factor · a penalty, whose options are the other fields."""

    factor: Any = strength(0.01)

    _penalty: ClassVar[Callable[..., jax.Array]]

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "factor"}

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.factor, type(self)._penalty(x, **self._options()), name="factor")


class WithProx(OfPenalty):
    """factor · a penalty that has a prox."""

    _prox: ClassVar[Callable[..., jax.Array]]

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return type(self)._prox(x, times_strength(step, self.factor, name="factor"), **self._options())
