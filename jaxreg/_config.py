"""Configs: objects as plain JSON under Keras's keys, and back."""

import inspect
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from jaxreg import penalties
from jaxreg._checks import brief, describe
from jaxreg._pytree import attributes, is_number

# The classes that a config may name without `custom_objects`. Each adds itself where it is defined.
BUILT_IN: dict[str, type["Configured"]] = {}


def is_built_in(cls: type) -> bool:
    return BUILT_IN.get(cls.__name__) is cls


class Configured:
    """An object made of its fields, which its repr and its config show."""

    _is_frozen: ClassVar[bool] = False

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make this object again, in plain JSON.

        A number is kept as it was given. A keyword-only field at its default is left out, so that Keras can read the
        config of a class that it knows.

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
        """Returns the object whose `get_config` returned `config`."""
        return cls(**{name: from_dict(value, custom_objects) for name, value in config.items()})

    def _to_dict(self) -> dict[str, Any]:
        """Returns the object under Keras's four keys."""
        cls = type(self)
        built_in = is_built_in(cls)
        return {
            "module": "jaxreg" if built_in else cls.__module__,
            "class_name": cls.__name__,
            "config": self.get_config(),
            "registered_name": None if built_in else cls.__name__,
        }

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={brief(value)}" for name, value in _shown(self).items())
        return f"{type(self).__name__}({inside})"


def _fields(obj: Configured) -> dict[str, Any]:
    found = getattr(obj, "__dataclass_fields__", {}) if obj._is_frozen else {}
    return {name: field for name, field in found.items() if name in attributes(obj)}


def _shown(obj: Configured) -> dict[str, Any]:
    """Returns the attributes that a config and a repr show: the constructor's, without keyword-only defaults."""
    fields = _fields(obj)

    def is_shown(name: str, value: Any) -> bool:
        field = fields.get(name)
        if field is None:
            return True
        is_default = type(value) is type(field.default) and value == field.default
        return field.init and not (field.kw_only and is_default)

    return {name: value for name, value in attributes(obj).items() if is_shown(name, value)}


def is_penalty(obj: Any) -> bool:
    """Returns whether `obj` serves as a regularizer: any callable that is not a class."""
    return callable(obj) and not isinstance(obj, type)


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
    """Returns a regularizer, or a function with a name, under Keras's four keys."""
    if isinstance(obj, Configured):
        return obj._to_dict()
    if not isinstance(obj, types.FunctionType) or obj.__name__ == "<lambda>":
        own = "; it has a `get_config` of its own" if hasattr(obj, "get_config") else ""
        raise TypeError(f"expected a regularizer or a function with a name to find it by, got {brief(obj)}{own}")
    ours = getattr(penalties, obj.__name__, None) is obj
    return {
        "module": penalties.__name__ if ours else obj.__module__,
        "class_name": "function",
        "config": obj.__name__,
        "registered_name": obj.__name__,
    }


def from_dict(value: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Returns `value` with every dict that `to_dict` made turned into its object, and with lists turned into tuples."""
    if custom_objects is not None and not isinstance(custom_objects, Mapping):
        raise TypeError(f"`custom_objects` must be a dict from names to objects, got {describe(custom_objects)}")
    try:
        return _from_dict(value, custom_objects)
    except RecursionError as error:
        raise ValueError("`config` is nested too deeply") from error


def _from_dict(value: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_from_dict(part, custom_objects) for part in value)
    if not isinstance(value, Mapping) or "class_name" not in value:
        return value
    if not isinstance(value["class_name"], str):
        raise TypeError(f"`class_name` in a config must be a name, got {describe(value['class_name'])}")
    custom = custom_objects or {}
    module, class_name, config = value.get("module"), value["class_name"], value.get("config")
    config = {} if config is None else config
    registered_name = value.get("registered_name")
    is_function = class_name == "function"
    if is_function and not isinstance(config, str):
        raise TypeError(f"`config` of a function must be its name, got {describe(config)}")
    names: tuple[Any, ...] = (config,) if is_function else (registered_name, class_name)
    found = next((custom[name] for name in names if name in custom), None)
    known_module = module is None or module == "jaxreg" or str(module).startswith("keras.")
    if found is None and not is_function and known_module and registered_name is None:
        found = BUILT_IN.get(class_name)
    if found is None and is_function and module == penalties.__name__ and not str(config).startswith("_"):
        found = getattr(penalties, str(config), None)
    if found is None:
        wanted = config if is_function else class_name
        raise ValueError(
            f"unknown regularizer {wanted!r} of module {module!r}: a class or function of your own "
            f"must be in `custom_objects`, as {{{wanted!r}: ...}}; built in are "
            f"{', '.join(sorted(BUILT_IN))}; `custom_objects` has {sorted(custom)}"
        )
    if is_function:
        if not is_penalty(found):
            raise TypeError(f"`custom_objects[{config!r}]` must be a function, got {describe(found)}")
        return found
    if not isinstance(config, Mapping):
        raise TypeError(f"`config` of {class_name!r} must be a dict, got {describe(config)}")
    if not isinstance(found, type) or not hasattr(found, "from_config"):
        raise TypeError(f"`custom_objects[{class_name!r}]` must be a class with `from_config`, got {describe(found)}")
    return found.from_config({name: _from_dict(part, custom) for name, part in config.items()})
