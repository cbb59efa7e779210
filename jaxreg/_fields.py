"""The kinds of the fields of what jaxreg ships, and their checks."""

import dataclasses
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from jaxreg._checks import check_bool, check_single, checked_bound, checked_number, checked_schedule, is_schedule
from jaxreg._matrix import checked_axes, groups_in, matrices_in
from jaxreg._term import unresolved

_NUMBERS = ("strength", "number", "bound")


def strength(default: float, *, unset: float | None = None) -> Any:
    """A field for the number >= 0 that multiplies a penalty. None becomes `unset` where that is given."""
    return dataclasses.field(default=default, metadata={"kind": "strength", "unset": unset})


def number(
    default: float,
    *,
    above: float | None = None,
    most: float | None = None,
    unset: float | None = None,
    kw_only: bool = True,
) -> Any:
    """A field for a number that is an option: >= 0, or greater than `above`, and at most `most`."""
    metadata = {"kind": "number", "above": above, "most": most, "unset": unset}
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


def bound() -> Any:
    """A field for a number of either sign, which may be infinite."""
    return dataclasses.field(metadata={"kind": "bound"})


def axes(default: int | tuple[int, ...], *, kw_only: bool = True) -> Any:
    """A static field for an axis, or several."""
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True, "kind": "axes"})


def static(default: Any, *, kw_only: bool = True) -> Any:
    """A static field. One whose default is a bool must be a bool."""
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True, "kind": "static"})


def _checked(value: Any, field: dataclasses.Field[Any]) -> Any:
    """Returns the value of a field, checked as its kind asks."""
    kind, data = field.metadata["kind"], field.metadata
    if kind == "bound":
        return checked_bound(value, name=field.name)
    if kind in _NUMBERS:
        limits = {"above": data.get("above"), "most": data.get("most")}
        return checked_number(value, name=field.name, unset=data["unset"], **limits)
    if kind == "axes":
        return checked_axes(value, name=field.name)
    if isinstance(field.default, bool):
        check_bool(value, name=field.name)
    return value


class Fields:
    """The part of a term that checks fields of these kinds. The maths of such a term can work on shards."""

    # Every class with these fields is a dataclass.
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    _takes_shards: ClassVar[bool] = True

    # Two fields, the first of which must be at most the second.
    _in_order: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        names = [field.name for field in dataclasses.fields(cls)]
        if "axis" in kwargs and "axis" not in names and "group_axis" in names:
            raise TypeError(
                f"{cls.__name__} takes no `axis`, as Keras calls the axes within a group. It takes `group_axis`, the "
                f"axes whose indices count the groups, got axis={kwargs['axis']!r}. Keras's axis=0 of a Dense kernel "
                "and axis=[0, 1, 2] of a Conv kernel are group_axis=-1, the default"
            )
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_function = is_schedule(value) and field.metadata["kind"] in _NUMBERS
            value = checked_schedule(value, name=field.name) if is_function else _checked(value, field)
            object.__setattr__(self, field.name, value)
        self._check_order()

    def _check_order(self) -> None:
        """Raises an error where the first of two numbers is known to be greater than the second."""
        values = [getattr(self, name) for name in self._in_order]
        known = all(isinstance(value, float | int | np.number | np.ndarray) for value in values)
        if values and known and np.any(np.asarray(values[0]) > np.asarray(values[1])):
            first, second = self._in_order
            raise ValueError(f"`{first}` must be at most `{second}`, got {values[0]} and {values[1]}")

    def _of_kind(self, *kinds: str) -> list[str]:
        """Returns the names of the fields of some kinds."""
        return [f.name for f in dataclasses.fields(self) if f.metadata["kind"] in kinds]

    def _schedules(self) -> tuple[str, ...]:
        return tuple(name for name in self._of_kind(*_NUMBERS) if is_schedule(getattr(self, name)))

    def _at(self, name: str, count: Any) -> Any:
        (field,) = (f for f in dataclasses.fields(self) if f.name == name)
        value = getattr(self, name)(count)
        if value is None:
            raise TypeError(f"`{name}` must be a number, got None from its schedule")
        value = _checked(value, field)
        check_single(value, name=name)
        return value

    def _number(self, name: str) -> Any:
        """Returns a number, which must not be a schedule."""
        value = getattr(self, name)
        if is_schedule(value):
            raise unresolved(type(self).__name__, name, value)
        return value

    def _options(self) -> dict[str, Any]:
        """Returns all fields but the strength. Numbers become arrays: `__init__` has checked them."""
        numbers = {name: jnp.asarray(self._number(name)) for name in self._of_kind("number", "bound")}
        return numbers | {name: getattr(self, name) for name in self._of_kind("axes", "static")}

    def _seen(self, x: Any) -> str:
        named = {name: getattr(self, name) for name in self._of_kind("axes")}
        if "out_axis" in named:
            return matrices_in(x, **named)
        # Without an axis that counts groups, each array of a batch is one.
        return groups_in(x, **({"group_axis": ()} | named)) if named else ""
