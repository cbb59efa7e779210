"""Names and dicts to regularizers, and back."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxreg import penalties
from jaxreg._checks import describe
from jaxreg._config import BUILT_IN, from_dict, is_penalty, to_dict
from jaxreg._pytree import is_number
from jaxreg._regularizers import _shipped as regularizers  # importing a package defines every shipped class
from jaxreg._term import Term
from jaxreg.constraints import _shipped as constraints

# A regularizer or a constraint, or a function from an array to a scalar.
RegularizerLike = Term | Callable[[jax.Array], jax.Array]
Shipped = regularizers.Shipped | constraints.Shipped


def _names_of(cls: type[Shipped]) -> tuple[str, ...]:
    """Returns the names of a class: its own, that in snake case as Keras writes it, and that of its penalty."""
    snake_case = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    penalty = cls._penalty.__name__ if issubclass(cls, regularizers.Shipped) else ""
    return tuple(dict.fromkeys([cls.__name__, penalty if hasattr(penalties, penalty) else snake_case, snake_case]))


_SHIPPED = [
    cls for kind in (regularizers.Shipped, constraints.Shipped) for cls in BUILT_IN.values() if issubclass(cls, kind)
]
_NAMED: dict[str, Any] = {name: cls for cls in _SHIPPED for name in _names_of(cls)}


def get(identifier: Any) -> RegularizerLike | None:
    """Returns the regularizer that `identifier` stands for, as `keras.regularizers.get` finds it.

    Args:
      identifier: a name, which stands for its documented defaults, such as "l2" or "l1_l2" (0.01 and 0.01); a dict from
        `serialize` or `keras.regularizers.serialize`; a class, which is called without arguments (`L1L2` has the
        defaults of its name here); an object of a class that Keras and jaxreg both have; a regularizer or a function
        from an array to a scalar, which is returned as it is; or None.

    Raises:
      ValueError: the name is unknown. The message lists those that exist.
      TypeError: `identifier` is anything else.

    >>> jaxreg.get("l1_l2")
    L1L2(l1=0.01, l2=0.01)
    >>> jaxreg.get({"class_name": "L2", "config": {"l2": 0.1}})
    L2(l2=0.1)
    """
    if identifier is None:
        return None
    if isinstance(identifier, str | Mapping):
        return deserialize(identifier)
    if isinstance(identifier, type) and issubclass(identifier, Term):
        return _with_defaults(identifier)
    cls = type(identifier)
    if cls.__module__.startswith("keras.") and cls.__name__ in BUILT_IN:
        return deserialize({"class_name": cls.__name__, "config": identifier.get_config()})
    if is_penalty(identifier):
        return identifier
    hint = f"; write L2({identifier}) for a strength of L2" if is_number(identifier) else ""
    raise TypeError(
        "`identifier` must be a name, a dict, a regularizer or a class of one, a function or None, "
        f"got {describe(identifier)}{hint}"
    )


def _with_defaults(cls: type[Term]) -> Any:
    if not issubclass(cls, Shipped):
        return cls()
    fields = dataclasses.fields(cls)
    if required := [field.name for field in fields if field.default is dataclasses.MISSING]:
        named = ", ".join(f"{name}=..." for name in required)
        raise TypeError(f"`identifier` must be an object where a class has no defaults: write {cls.__name__}({named})")
    return cls(**cls._named_defaults)


def serialize(regularizer: RegularizerLike | None) -> dict[str, Any] | None:
    """Returns a regularizer, or a function with a name, as plain JSON under Keras's four keys, and None for None.

    Keras reads the dicts of the regularizers that it has too.

    Raises:
      TypeError: a strength is traced or stacked, or a function has no name.

    >>> jaxreg.serialize(jaxreg.L2(0.1))
    {'module': 'jaxreg', 'class_name': 'L2', 'config': {'l2': 0.1}, 'registered_name': None}
    """
    return None if regularizer is None else to_dict(regularizer)


def deserialize(
    config: str | Mapping[str, Any] | None, custom_objects: Mapping[str, Any] | None = None
) -> RegularizerLike | None:
    """Returns the regularizer from which `serialize`, here or in Keras, made `config`.

    Args:
      config: a dict, or a name that `get` knows, or None, which is None again.
      custom_objects: your own classes and functions by name. They are found nowhere else.

    Raises:
      ValueError: the name is unknown. The message lists those that exist.

    >>> jaxreg.deserialize(jaxreg.serialize(jaxreg.L1(0.1) + jaxreg.L2(0.2)))
    L1(l1=0.1) + L2(l2=0.2)
    """
    if config is None:
        return None
    if isinstance(config, Mapping):
        if "class_name" not in config:
            raise ValueError(f"`config` must have a key 'class_name', got keys {sorted(config)}")
        # Keras has its classes under snake case too. A user's own class of that name comes first.
        name = config["class_name"]
        cls = _NAMED.get(name) if isinstance(name, str) and name not in (custom_objects or {}) else None
        return from_dict({**config, "class_name": cls.__name__} if cls else config, custom_objects)
    if not isinstance(config, str):
        raise TypeError(f"`config` must be a dict or a name, got {describe(config)}")
    if custom_objects is not None and not isinstance(custom_objects, Mapping):
        raise TypeError(f"`custom_objects` must be a dict from names to objects, got {describe(custom_objects)}")
    custom = custom_objects or {}
    if config in custom:
        found = get(custom[config])
        if found is not None:
            return found
    if config in _NAMED:
        return _with_defaults(_NAMED[config])
    raise ValueError(f"unknown regularizer {config!r}; the names are {', '.join([*custom, *_NAMED])}")
