"""Objects as pytrees: floats and arrays are leaves, and every other attribute is static."""

import dataclasses
import enum
import functools
import inspect
from typing import Any

import flax.serialization
import jax
import numpy as np
from jax.tree_util import GetAttrKey

# An unflattened object remembers here which attributes are its leaves, because JAX also unflattens with placeholders,
# whose type says nothing.
_REMEMBERED = "_pytree_leaves"


def is_number(value: Any) -> bool:
    """Returns whether `value` is a number or an array of numbers. A bool and a member of an enum are choices."""
    if isinstance(value, bool | np.bool_ | enum.Enum):
        return False
    return isinstance(value, int | float | complex | np.number | np.ndarray | jax.Array)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | enum.Enum)


def _is_child(value: Any) -> bool:
    """Returns whether an attribute belongs to the leaves: a float, an array, or what holds one or a node of ours.

    An int is a choice, such as an axis or a count.
    """
    parts = jax.tree.leaves(value, is_leaf=lambda part: type(part) in _REGISTERED)
    return any(type(part) in _REGISTERED or (is_number(part) and not _is_int(part)) for part in parts)


def make_dataclass(cls: type) -> None:
    """Makes `cls` a dataclass in place, whose `__setattr__` and `__delattr__` are those of its base.

    A decorator written by habit does no harm then, because it finds the fields as they were written. An int given for a
    field whose annotation mentions `float` or `Array` becomes a float.
    """
    marked = {n: f for n, f in vars(cls).items() if isinstance(f, dataclasses.Field) and f.init}
    made: Any = dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
    for name, field in marked.items():
        setattr(cls, name, field)
    del cls.__setattr__, cls.__delattr__

    init = made.__init__
    numbers = tuple(field.name for field in dataclasses.fields(made) if _is_number_field(field))

    @functools.wraps(init)
    def init_with_floats(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name in numbers:
            if _is_int(value := getattr(self, name)):
                object.__setattr__(self, name, float(value))

    made.__init__ = init_with_floats


def _is_number_field(field: dataclasses.Field[Any]) -> bool:
    """Returns whether an annotation, read as text, promises a float or an array. A static field is a choice."""
    text = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    return not field.metadata.get("static") and ("float" in text or "Array" in text)


def attributes(obj: Any) -> dict[str, Any]:
    """Returns the state of an object: the fields of a dataclass, or all that its own `__init__` has set.

    Cached properties are left out. They are computed again where they are asked for, so they follow traced strengths.
    """
    cls = type(obj)
    others = {
        name: value
        for name, value in vars(obj).items()
        if name != _REMEMBERED and not isinstance(getattr(cls, name, None), functools.cached_property)
    }
    if not getattr(cls, "_is_frozen", False):
        return others
    fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if extra := sorted(set(others) - set(fields)):
        raise TypeError(f"`{extra[0]}` of {cls.__name__} is not a field; make it one, or a property")
    return fields


def _static_names(cls: type) -> set[str]:
    """Returns the fields marked static, in a dataclass and in a class with an `__init__` of its own."""
    marked = dict(getattr(cls, "__dataclass_fields__", {}))
    for base in reversed(cls.__mro__):
        marked |= {name: value for name, value in vars(base).items() if isinstance(value, dataclasses.Field)}
    return {name for name, field in marked.items() if field.metadata.get("static")} | getattr(cls, "_static", set())


def _split(obj: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of an object's leaves, and those of its static attributes."""
    values = attributes(obj)
    names = vars(obj).get(_REMEMBERED)
    if names is None:
        static = _static_names(type(obj))
        names = tuple(name for name, value in values.items() if name not in static and _is_child(value))
    return names, tuple(name for name in values if name not in names)


def _flatten_with_keys(obj: Any) -> tuple[tuple[Any, ...], Any]:
    names, static_names = _split(obj)
    static = []
    for name in static_names:
        value = getattr(obj, name)
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"`{name}` of {type(obj).__name__} is static, so it must be hashable, "
                f"got {type(value).__name__} {value!r}"
            ) from error
        static.append((name, type(value), value))  # 1, 1.0 and True are equal, and not the same choice
    children = tuple((GetAttrKey(name), getattr(obj, name)) for name in names)
    return children, (names, tuple(static))


def _flatten(obj: Any) -> tuple[tuple[Any, ...], Any]:
    children, aux = _flatten_with_keys(obj)
    return tuple(child for _, child in children), aux


_REGISTERED: set[type] = set()


def identity(obj: Any) -> tuple[Any, ...]:
    """Returns what two equal objects have in common: their structure, their numbers, and the arrays themselves."""
    leaves, structure = jax.tree.flatten(obj)
    tokens = (leaf if isinstance(leaf, int | float | np.generic) else id(leaf) for leaf in leaves)
    return (structure, *tokens)


def register(cls: type) -> None:
    """Registers `cls` as a pytree node, and for `flax.serialization`.

    Unflattening bypasses `__init__` and its checks, because a gradient with respect to a strength may be negative, and
    JAX unflattens with tracers and placeholders.
    """

    def unflatten(aux: Any, children: Any) -> Any:
        names, static = aux
        obj: Any = object.__new__(cls)
        chosen = ((name, value) for name, _, value in static)
        for name, value in (*zip(names, children, strict=True), *chosen, (_REMEMBERED, names)):
            object.__setattr__(obj, name, value)
        return obj

    def to_state_dict(obj: Any) -> dict[str, Any]:
        names, _ = _split(obj)
        return {name: flax.serialization.to_state_dict(getattr(obj, name)) for name in names}

    def from_state_dict(obj: Any, state: dict[str, Any]) -> Any:
        children, (names, static) = _flatten(obj)
        if set(state) != set(names):
            raise ValueError(f"the saved state of {cls.__name__} must hold {sorted(names)}, got {sorted(state)}")
        restored = [
            flax.serialization.from_state_dict(child, state[name], name=name)
            for name, child in zip(names, children, strict=True)
        ]
        return unflatten((names, static), restored)

    _REGISTERED.add(cls)
    jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, unflatten, _flatten)
    flax.serialization.register_serialization_state(cls, to_state_dict, from_state_dict)


def replaced(obj: Any, new: dict[str, Any]) -> Any:
    """Returns a copy of an object with some attributes replaced, without its `__init__` and its checks."""
    copy: Any = object.__new__(type(obj))
    for name, value in (attributes(obj) | new).items():
        object.__setattr__(copy, name, value)
    return copy
