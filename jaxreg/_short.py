"""Configs as people write them: a list of rules, each with its regularizers and constraints by name."""

import contextlib
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxreg._base import Sum
from jaxreg._checks import describe
from jaxreg._config import from_dict
from jaxreg._matching import Pattern, checked_pattern
from jaxreg._serialization import _NAMED, RegularizerLike, deserialize


def plain(config: Any) -> Any:
    """Returns a config made of dicts and lists, from any other mappings and sequences.

    A `ConfigDict` of ml_collections is no `Mapping`, and its references are resolved.
    """
    try:
        return _plain(config)
    except RecursionError as error:
        raise ValueError("`config` is nested too deeply") from error


def _plain(config: Any) -> Any:
    if isinstance(config, str | bytes):
        return config
    if type(config).__name__ == "FieldReference":
        return _plain(config.get())
    if isinstance(config, Mapping) or (hasattr(config, "keys") and hasattr(config, "__getitem__")):
        return {key: _plain(config[key]) for key in config}
    return [_plain(part) for part in config] if isinstance(config, Sequence) else config


def pairs_from(
    rules: Any, custom_objects: Mapping[str, Any] | None = None
) -> list[tuple[Pattern, RegularizerLike | None]]:
    """Returns the arguments of `Rules` for a plain list of short rules, such as `{"pattern": "kernel$", "l2": 1e-4}`.

    Errors name the place, such as `rules[2].l2`.
    """
    if not isinstance(rules, list):
        raise TypeError(f"`rules` in a config must be a list, because their order counts, got {describe(rules)}")
    if not rules:
        raise ValueError("`rules` in a config must hold at least one rule, got an empty list")
    if custom_objects is not None and not isinstance(custom_objects, Mapping):
        raise TypeError(f"`custom_objects` must be a dict from names to objects, got {describe(custom_objects)}")
    return [_pair(rule, f"rules[{index}]", custom_objects or {}) for index, rule in enumerate(rules)]


def _pair(rule: Any, place: str, custom: Mapping[str, Any]) -> tuple[Pattern, RegularizerLike | None]:
    example = "such as {'pattern': 'kernel$', 'l2': 0.0001}"
    if not isinstance(rule, dict):
        raise TypeError(f"`{place}` must be a dict, {example}, got {describe(rule)}")
    names = [name for name in rule if name != "pattern"]
    for name in names:
        _check_known(name, place, custom)
    if "pattern" not in rule:
        raise ValueError(f"`{place}` must have a 'pattern', {example}, got {rule}")
    if not isinstance(rule["pattern"], str):
        raise TypeError(f"`{place}.pattern` must be a string, got {describe(rule['pattern'])}")
    with _located(f"{place}.pattern"):
        pattern = checked_pattern(rule["pattern"])
    if not names:
        raise ValueError(
            f"`{place}` must have a regularizer or a constraint, {example}, got {rule}; "
            "write 'regularizer': null to leave parameters alone"
        )
    if "regularizer" in names:
        if len(names) > 1:
            raise ValueError(f"`{place}` must have either 'regularizer' or names such as 'l2', got {names}")
        return pattern, _identified(rule["regularizer"], f"{place}.regularizer", custom)
    classes = [_found(name, custom) for name in names]
    if twice := [name for index, name in enumerate(names) if classes[index] in classes[:index]]:
        raise ValueError(
            f"`{place}` must name each regularizer once, got {names}, in which {twice[0]!r} is another name"
        )
    found = [_named(name, rule[name], f"{place}.{name}", custom) for name in names]
    terms: Any = tuple(found)  # functions too, which the sum takes
    return pattern, found[0] if len(found) == 1 else Sum(terms)


def _check_known(name: Any, place: str, custom: Mapping[str, Any]) -> None:
    _check_name(name, ["pattern", "regularizer", *custom, *_NAMED], f"`{place}` has the unknown name")


def _check_name(name: Any, known: Sequence[str], found: str) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.0)
        raise ValueError(f"{found} {name!r}; the nearest {_are(nearest)} {', '.join(map(repr, nearest))}")


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


def _identified(value: Any, place: str, custom: Mapping[str, Any]) -> RegularizerLike | None:
    """Returns a regularizer for a name or for a dict under Keras's keys, and None for None."""
    is_dict = isinstance(value, dict) and isinstance(value.get("class_name"), str)
    if value is not None and not isinstance(value, str) and not is_dict:
        got = value if isinstance(value, dict) else describe(value)
        raise TypeError(
            f"`{place}` must be null, a name, or a dict with a 'class_name', got {got}; "
            "a regularizer with arguments may stand beside the pattern, as 'l2': 0.0001"
        )
    if is_dict and isinstance(value.get("config"), dict):
        cls = _found(value["class_name"], custom)
        value = {**value, "config": _with_numbers(cls, value["config"])}
    with _located(place):
        return deserialize(value, custom)


def _named(name: str, value: Any, place: str, custom: Mapping[str, Any]) -> RegularizerLike:
    """Returns the regularizer or constraint of a name, with its defaults, its first argument, or arguments by name."""
    cls = _found(name, custom)
    is_default = value is True or (isinstance(value, dict) and not value)
    if value is None:
        raise TypeError(
            f"`{place}` must not be null; write true for the defaults of {name!r}, or leave it out, or write "
            "'regularizer': null to leave parameters alone"
        )
    if not isinstance(cls, type):
        if not is_default:
            raise TypeError(f"`{place}` must be true, because {name!r} takes no arguments, got {describe(value)}")
        if cls is None:
            raise TypeError(f"`custom_objects[{name!r}]` must be a regularizer or a constraint, got None")
    else:
        parameters = inspect.signature(cls).parameters
        if not is_default and not isinstance(value, dict):
            value = {_first(parameters, value, place): _as_number(value)}
        _check_arguments(parameters, {} if is_default else value, place)
    with _located(place):
        if is_default:
            return deserialize(name, custom)  # type: ignore[return-value]  # only None gives None
        return cls(**{n: from_dict(v, custom) for n, v in _with_numbers(cls, value).items()})


def _found(name: str, custom: Mapping[str, Any]) -> Any:
    return custom.get(name, _NAMED.get(name))


def _first(parameters: Mapping[str, inspect.Parameter], value: Any, place: str) -> str:
    """Returns the name of the first argument, for a value that must be a number."""
    first = next((name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD), None)
    number = _as_number(value)
    if first is None or isinstance(number, bool) or not isinstance(number, int | float | np.number):
        taken = [f"a number, which is its `{first}`"] if first else []
        taken += ["a dict of arguments"] if parameters else []
        raise TypeError(f"`{place}` must be {', or '.join([*taken, 'true'])}, got {describe(value)}")
    return first


def _check_arguments(parameters: Mapping[str, inspect.Parameter], given: Mapping[Any, Any], place: str) -> None:
    # Keras's constraints have an `axis`, and the class that is given one explains it.
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in given:
            if name != "axis" or "group_axis" not in parameters:
                _check_name(name, list(parameters), f"`{place}` has the unknown argument")
    by_name = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if missing := [p.name for p in by_name if p.default is p.empty and p.name not in given]:
        raise ValueError(f"`{place}` must be a dict with {' and '.join(map(repr, missing))}, got {given or 'neither'}")


def _with_numbers(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments for a class, with numbers in place of their text."""
    return {name: _as_number(value) if _takes_number(cls, name) else value for name, value in given.items()}


def _takes_number(cls: Any, name: str) -> bool:
    """Returns whether an argument is a number, as a shipped class knows of its own, and others by their annotation."""
    field = getattr(cls, "__dataclass_fields__", {}).get(name)
    if field is not None and "kind" in field.metadata:
        return field.metadata["kind"] in ("strength", "number", "bound")
    parameter = inspect.signature(cls).parameters.get(name) if isinstance(cls, type) else None
    if parameter is None:
        return False
    promised = str(parameter.annotation)
    return "float" in promised or "Array" in promised or isinstance(parameter.default, float)


def _as_number(value: Any) -> Any:
    """Returns a number for its text, because PyYAML reads `1e-4` as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@contextlib.contextmanager
def _located(place: str) -> Iterator[None]:
    """Lets an error name the place in the config."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{place}`: {error}") from error
