"""Names and dicts to regularizers, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxreg._base import Regularizer
from jaxreg._configured import BUILT_IN, from_dict, is_penalty, to_dict
from jaxreg._numerics import describe
from jaxreg._pytree import is_number
from jaxreg._regularizers import L1, L1L2, L2, SHIPPED, OrthogonalRegularizer
from jaxreg._regularizers._strengths import OfPenalty

Penalty = Regularizer | Callable[[jax.Array], jax.Array]

# Keras's names and those of the penalties, each with its documented defaults: `L1L2()` itself has strengths of 0.
_NAMED: dict[type[Regularizer], tuple[tuple[str, ...], dict[str, float]]] = {
    L1: (("L1", "l1"), {}),
    L2: (("L2", "l2"), {}),
    L1L2: (("L1L2", "l1_l2", "l1l2"), {"l1": 0.01, "l2": 0.01}),
    OrthogonalRegularizer: (
        ("OrthogonalRegularizer", "orthogonal_regularizer", "orthogonal"),
        {},
    ),
}
_NAMED |= {
    cls: ((cls.__name__, cls._penalty.__name__), {})
    for cls in SHIPPED
    if issubclass(cls, OfPenalty) and cls not in _NAMED
}


def get(identifier: Any) -> Penalty | None:
    """The regularizer that `identifier` means, as `keras.regularizers.get` finds it.

    Args:
      identifier: a name, with its documented defaults, such as "l2" or "l1_l2" (0.01 and 0.01); a dict from
        `serialize` or `keras.regularizers.serialize`; a class, which is called without arguments (`L1L2` has the
        defaults of its name here); an object of a class that
        Keras and jaxreg both have; a regularizer or a function from an array to a scalar, returned as it is; or None.

    Raises:
      ValueError: an unknown name; the message lists those that exist.
      TypeError: anything else.

    >>> jaxreg.get("l1_l2")
    L1L2(l1=0.01, l2=0.01)
    >>> jaxreg.get({"class_name": "L2", "config": {"l2": 0.1}})
    L2(l2=0.1)
    """
    if identifier is None:
        return None
    if isinstance(identifier, str | Mapping):
        return deserialize(identifier)
    if isinstance(identifier, type) and issubclass(identifier, Regularizer):
        named = next((base for base in identifier.__mro__ if base in _NAMED), None)
        return identifier(**(_NAMED[named][1] if named else {}))
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


def serialize(regularizer: Penalty) -> dict[str, Any]:
    """A regularizer or a named function as plain JSON, under Keras's four keys.

    Keras reads the dicts of the regularizers that it has too.

    Raises:
      TypeError: a strength is traced or stacked, or a function has no name.

    >>> jaxreg.serialize(jaxreg.L2(0.1))
    {'module': 'jaxreg', 'class_name': 'L2', 'config': {'l2': 0.1}, 'registered_name': None}
    """
    return to_dict(regularizer)


def deserialize(config: str | Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Penalty:
    """The regularizer that `serialize`, here or in Keras, made `config` of.

    Args:
      config: a dict, or a name as `get` takes it.
      custom_objects: your own classes and functions by name. They resolve through it alone.

    Raises:
      ValueError: an unknown name; the message lists those that exist.

    >>> jaxreg.deserialize(jaxreg.serialize(jaxreg.L1(0.1) + jaxreg.L2(0.2)))
    L1(l1=0.1) + L2(l2=0.2)
    """
    if isinstance(config, Mapping):
        if "class_name" not in config:
            raise ValueError(f"`config` must have a key 'class_name', got keys {sorted(config)}")
        # Keras has its classes under snake case too.
        cls = next((cls for cls, (names, _) in _NAMED.items() if config["class_name"] in names), None)
        return from_dict({**config, "class_name": cls.__name__} if cls else config, custom_objects)
    if not isinstance(config, str):
        raise TypeError(f"`config` must be a dict or a name, got {describe(config)}")
    custom = custom_objects or {}
    if config in custom:
        found = get(custom[config])
        if found is not None:
            return found
    for cls, (names, defaults) in _NAMED.items():
        if config in names:
            return cls(**defaults)
    known = [*custom, *(name for names, _ in _NAMED.values() for name in names)]
    raise ValueError(f"unknown regularizer {config!r}; the names are {', '.join(known)}")
