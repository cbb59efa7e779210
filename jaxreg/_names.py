"""Marks of what is defined: public names, which make lists, and penalties that are means over a batch."""

import functools
import sys
from typing import Any, TypeVar

_T = TypeVar("_T")


def public(obj: _T) -> _T:
    """Adds a function or a class to the `__all__` of its module, as a decorator.

    A package takes the marked names by `from module import *`. Type checkers see no `__all__` then, and take every name
    that does not begin with `_`, which are the same ones after an import.
    """
    # A function under `jax.custom_jvp` is an object with the name and the module of the function.
    marked: Any = obj
    vars(sys.modules[marked.__module__]).setdefault("__all__", []).append(marked.__name__)
    return obj


def mean_over_batch(penalty: _T) -> _T:
    """Marks a penalty of layer outputs that is a mean over the samples of a batch, and not a sum, as a decorator."""
    marked: Any = penalty
    marked.is_mean_over_batch = True
    return penalty


def is_mean_over_batch(penalty: Any) -> bool:
    """Returns whether a function, perhaps with some arguments given, has that mark."""
    while isinstance(penalty, functools.partial):
        penalty = penalty.func
    return getattr(penalty, "is_mean_over_batch", False)


def list_names(package: str) -> None:
    """Sets the `__all__` of a package to all its names that do not begin with `_`, sorted."""
    namespace = vars(sys.modules[package])
    namespace["__all__"] = sorted(name for name in namespace if not name.startswith("_"))
