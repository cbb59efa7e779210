"""What every regularizer is: frozen data, a pytree, something that adds and scales and has a config."""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, dataclass_transform

import jax
import numpy as np

from jaxreg import penalties
from jaxreg._numerics import brief, checked_scalar, checked_strength, describe, scaled, total
from jaxreg._pytree import attributes, identity, is_number, make_dataclass, register

# The classes that a config may name without `custom_objects`.
BUILT_IN: dict[str, type["Regularizer"]] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Regularizer:
    """A penalty with its strength: a callable from an array to a scalar, and a pytree.

    To write one, annotate its numbers as fields and define `__call__`. No decorator is needed.

    >>> class Cube(jaxreg.Regularizer):
    ...     factor: float = 0.01
    ...
    ...     def __call__(self, x):
    ...         return self.factor * jnp.sum(jnp.abs(x) ** 3)
    >>> float(Cube(0.5)(jnp.array([2.0])))
    4.0
    >>> jax.tree.leaves(Cube(0.5))
    [0.5]

    A class with an `__init__` of its own that sets attributes, as Keras documents it, works as
    written too. In both forms numbers, arrays and regularizers are the leaves of the pytree, so
    that they can be traced, mapped over and differentiated; strings, bools, functions, tuples of ints
    and fields marked `dataclasses.field(metadata={"static": True})` are static. An int that must
    stay a Python int, such as an axis, is to be marked.

    Regularizers add and scale: `a + b`, `sum([a, b])`, `2.0 * a`, `a + function`.
    """

    _is_frozen: ClassVar[bool] = False
    # NumPy's scalars and arrays leave `scale * regularizer` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("__slots__"):
            raise TypeError(f"{cls.__name__} must not have `__slots__`: its strengths would not be found")
        if "__init__" in cls.__dict__:
            cls._is_frozen = False
        elif cls.__init__ is object.__init__ or cls._is_frozen:
            make_dataclass(cls)
            cls._is_frozen = True
        register(cls)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and identity(self) == identity(other)

    def __hash__(self) -> int:
        return hash(identity(self))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_frozen:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_frozen:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        object.__delattr__(self, name)

    @property
    def needs_key(self) -> bool:
        """Whether the penalty is a random estimate, so that it must be called with `key=`."""
        return False

    def __call__(self, x: jax.Array) -> jax.Array:
        """The penalty of one array, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define `__call__(self, x)`")

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this regularizer again, in plain JSON.

        A number is kept as it was given. A keyword-only field at its default is left out, so that Keras can read
        the config of a class it knows.

        Raises:
          TypeError: a strength is traced or stacked, or a field has no form in JSON.
        """
        cls = type(self)
        made_of = [name for name, field in _fields(self).items() if field.init]
        if not self._is_frozen or set(inspect.signature(cls).parameters) != set(made_of):
            raise NotImplementedError(f"{cls.__name__} is made of more than its fields and must define `get_config`")
        return {name: _to_json(value, name=f"{cls.__name__}.{name}") for name, value in _shown(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """The regularizer whose `get_config` gave `config`."""
        return cls(**{name: from_dict(value, custom_objects) for name, value in config.items()})

    def __add__(self, other: Any) -> "Regularizer":
        return _added(self, other)

    def __radd__(self, other: Any) -> "Regularizer":
        return _added(other, self)

    def __mul__(self, scale: Any) -> "Regularizer":
        if not is_number(scale) and not isinstance(scale, bool | np.bool_):
            return NotImplemented
        return Scaled(scale, self)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={brief(value)}" for name, value in _shown(self).items())
        return f"{type(self).__name__}({inside})"


def _fields(regularizer: Regularizer) -> dict[str, Any]:
    found = getattr(regularizer, "__dataclass_fields__", {}) if regularizer._is_frozen else {}
    return {name: field for name, field in found.items() if name in attributes(regularizer)}


def _shown(regularizer: Regularizer) -> dict[str, Any]:
    """The attributes that a config and a repr show: what a constructor takes, without keyword-only defaults."""
    fields = _fields(regularizer)

    def is_shown(name: str, value: Any) -> bool:
        field = fields.get(name)
        if field is None:
            return True
        is_default = type(value) is type(field.default) and value == field.default
        return field.init and not (field.kw_only and is_default)

    return {name: value for name, value in attributes(regularizer).items() if is_shown(name, value)}


def penalty(regularizer: Regularizer, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """What `regularizer` makes of `x`, checked. One whose `needs_key` is true takes `key`, which no type says."""
    value = regularizer(x, key=key) if regularizer.needs_key else regularizer(x)  # type: ignore[call-arg]
    return checked_scalar(value, of=regularizer)


class Sum(Regularizer):
    """The sum of several regularizers, what `a + b` makes."""

    terms: tuple[Regularizer, ...]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(as_regularizer(term) for term in self.terms))

    @property
    def needs_key(self) -> bool:
        return any(term.needs_key for term in self.terms)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return total([penalty(term, x, key) for term in self.terms])


class Scaled(Regularizer):
    """A regularizer times a number >= 0, what `2.0 * a` makes."""

    scale: Any
    regularizer: Regularizer

    def __repr__(self) -> str:
        inner = f"({self.regularizer!r})" if isinstance(self.regularizer, Sum) else repr(self.regularizer)
        return f"{brief(self.scale)} * {inner}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_strength(self.scale, name="scale"))
        object.__setattr__(self, "regularizer", as_regularizer(self.regularizer))

    @property
    def needs_key(self) -> bool:
        return self.regularizer.needs_key

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        return scaled(self.scale, penalty(self.regularizer, x, key), name="scale")


class Function(Regularizer):
    """A plain function from an array to a scalar, as a regularizer without a strength of its own."""

    function: Callable[[jax.Array], jax.Array]

    def __repr__(self) -> str:
        return brief(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


BUILT_IN |= {cls.__name__: cls for cls in (Sum, Scaled, Function)}


def is_penalty(obj: Any) -> bool:
    """Whether `obj` serves as a regularizer: one of ours, or a callable that is no class."""
    return callable(obj) and not isinstance(obj, type)


def as_regularizer(obj: Any) -> Regularizer:
    if isinstance(obj, Regularizer):
        return obj
    if not is_penalty(obj):
        raise TypeError(f"expected a regularizer or a function from an array to a scalar, got {describe(obj)}")
    return Function(obj)


def _added(left: Any, right: Any) -> Regularizer:
    """`left + right`, one of them a regularizer; 0 is nothing, since Python's `sum` starts there."""
    parts: list[Regularizer] = []
    for part in (left, right):
        if isinstance(part, int | float) and not isinstance(part, bool) and part == 0:
            continue
        if not is_penalty(part):
            return NotImplemented
        parts += part.terms if isinstance(part, Sum) else (as_regularizer(part),)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def _to_json(value: Any, *, name: str) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return value.item() if isinstance(value, np.generic) else value
    if is_number(value):
        if isinstance(value, jax.core.Tracer):
            raise TypeError(f"`{name}` is traced, a config holds numbers; got {describe(value)}")
        if np.ndim(value):
            raise TypeError(
                f"`{name}` is stacked, a config holds one number; got {describe(value)}, "
                "take one with `jax.tree.map(lambda leaf: leaf[i], ...)`"
            )
        return np.asarray(value).item()
    if isinstance(value, tuple | list):
        return [_to_json(part, name=name) for part in value]
    if is_penalty(value):
        return to_dict(value)
    raise TypeError(f"`{name}` has no form in JSON, got {describe(value)}")


def to_dict(obj: Any) -> dict[str, Any]:
    """A regularizer or a named function as Keras's four keys."""
    if isinstance(obj, Function):
        obj = obj.function
    if isinstance(obj, Regularizer):
        cls = type(obj)
        built_in = BUILT_IN.get(cls.__name__) is cls
        return {
            "module": "jaxreg" if built_in else cls.__module__,
            "class_name": cls.__name__,
            "config": obj.get_config(),
            "registered_name": None if built_in else cls.__name__,
        }
    if not isinstance(obj, types.FunctionType) or obj.__name__ == "<lambda>":
        own = "; it has a `get_config` of its own" if hasattr(obj, "get_config") else ""
        raise TypeError(f"expected a regularizer or a function with a name to find it by, got {brief(obj)}{own}")
    return {
        "module": obj.__module__,
        "class_name": "function",
        "config": obj.__name__,
        "registered_name": obj.__name__,
    }


def from_dict(value: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """What `to_dict` made a dict of, wherever one stands in `value`; its lists become tuples."""
    if isinstance(value, list | tuple):
        return tuple(from_dict(part, custom_objects) for part in value)
    if not isinstance(value, Mapping) or "class_name" not in value:
        return value
    custom = custom_objects or {}
    module, class_name, config = value.get("module"), value["class_name"], value.get("config") or {}
    registered_name = value.get("registered_name")
    is_function = class_name == "function"
    names: tuple[Any, ...] = (config,) if is_function else (registered_name, class_name)
    found = next((custom[name] for name in names if name in custom), None)
    known_module = module is None or module == "jaxreg" or str(module).startswith("keras.")
    if found is None and not is_function and known_module and registered_name is None:
        found = BUILT_IN.get(class_name)
    if found is None and is_function and module == penalties.__name__ and config in penalties.__all__:
        found = getattr(penalties, config)
    if found is None:
        wanted = config if is_function else class_name
        raise ValueError(
            f"unknown regularizer {wanted!r} of module {module!r}: a class or function of your own "
            f"must be in `custom_objects`, as {{{wanted!r}: ...}}; built in are "
            f"{', '.join(sorted(BUILT_IN))}; `custom_objects` has {sorted(custom)}"
        )
    if is_function:
        return found
    if not isinstance(config, Mapping):
        raise TypeError(f"`config` of {class_name!r} must be a dict, got {describe(config)}")
    return found.from_config({name: from_dict(part, custom) for name, part in config.items()})
