"""Matching of patterns with the paths of leaves, and the errors for patterns that met none."""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxreg._base import Regularizer
from jaxreg._checks import describe, is_inexact_array
from jaxreg._paths import is_masked

Pattern = str | Callable[[str, Any], bool]


class Match(NamedTuple):
    """A leaf with the indices of the patterns that match it, the first of which has it.

    The leaf is a parameter (an array of a floating-point dtype), a `MaskedNode`, or a Python float. No pattern matches
    a Python float, and `explain` shows it.
    """

    path: str
    leaf: Any
    patterns: tuple[int, ...]


def checked_pattern(pattern: Any) -> Pattern:
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"the pattern {pattern!r} is not a regular expression, in which the `*` of a glob is `.*`: {error}"
            ) from error
        return pattern
    if callable(pattern) and not isinstance(pattern, type | Regularizer):
        return pattern
    raise TypeError(f"the pattern must be a string or a function (path, leaf) -> bool, got {describe(pattern)}")


def match(
    leaves: list[tuple[str, Any]], patterns: Sequence[Pattern], label: Callable[[int], str], *, strict: bool
) -> list[Match]:
    """Returns every parameter and `MaskedNode` with the patterns that match it. `label` names a pattern in errors."""
    found = []
    asked = [re.compile(pattern) if isinstance(pattern, str) else pattern for pattern in patterns]
    for path, leaf in leaves:
        if type(leaf) is float:
            found.append(Match(path, leaf, ()))
        elif _can_match(leaf):
            matching: tuple[int, ...] = ()
            for index, pattern in enumerate(asked):
                # Regular expressions are tried on every leaf, to know what they lost. Predicates see arrays only, and
                # no array that an earlier pattern has: they may rely on what is excluded before them.
                if isinstance(pattern, re.Pattern):
                    matches = pattern.search(path) is not None
                else:
                    matches = not matching and not is_masked(leaf) and _ask(pattern, path, leaf, label, index)
                matching += (index,) if matches else ()
            found.append(Match(path, leaf, matching))
    if strict:
        _check_met(leaves, found, patterns, label)
    return found


def _can_match(leaf: Any) -> bool:
    return is_masked(leaf) or is_inexact_array(leaf)


def _ask(predicate: Callable[[str, Any], bool], path: str, leaf: Any, label: Callable[[int], str], index: int) -> bool:
    try:
        answer = predicate(path, leaf)
    except Exception as error:
        error.add_note(f"in the predicate of {label(index)}, at `{path}`")
        raise
    if not isinstance(answer, bool | np.bool_):
        raise TypeError(f"the predicate of {label(index)} must return a bool, got {describe(answer)} at `{path}`")
    return bool(answer)


def _check_met(
    leaves: list[tuple[str, Any]], found: list[Match], patterns: Sequence[Pattern], label: Callable[[int], str]
) -> None:
    paths = [path for path, leaf in leaves if _can_match(leaf)]
    masked = [path for path, leaf in leaves if is_masked(leaf)]
    faults = []
    for index, pattern in enumerate(patterns):
        if any(m.patterns[:1] == (index,) for m in found) or _may_lie_below(pattern, masked, paths):
            continue
        if lost := [f"`{m.path}` to rule {m.patterns[0]}" for m in found if index in m.patterns]:
            faults.append(f"{label(index)} lost every match to earlier rules: {_listed(lost)}")
        elif isinstance(pattern, str):
            faults.append(f"{label(index)} met no parameter{_hint(pattern, leaves)}")
        else:
            faults.append(f"{label(index)} met no parameter that earlier rules had left{_hint(pattern, leaves)}")
    if faults:
        raise ValueError(f"{'; '.join(faults)}. Correct the rule, or allow it with Rules(..., strict=False).")


def _may_lie_below(pattern: Pattern, masked: list[str], paths: list[str]) -> bool:
    """Returns whether a pattern may match below a `MaskedNode`, which can stand for a whole subtree.

    A subtree is assumed to have paths that end as other paths end. Nothing is known of a predicate.
    """
    if not isinstance(pattern, str):
        return bool(masked)
    ends = {""}
    for path in paths:
        keys = path.split("/")
        ends |= {"/".join(keys[start:]) for start in range(len(keys))}
    return any(re.search(pattern, f"{path}/{end}") for path in masked for end in ends)


def _hint(pattern: Pattern, leaves: list[tuple[str, Any]]) -> str:
    """Returns a hint at what a rule that met nothing may have meant."""
    parameters = {path for path, leaf in leaves if _can_match(leaf)}
    if isinstance(pattern, str):
        others = [(path, leaf) for path, leaf in leaves if path not in parameters and re.search(pattern, path)]
        if others:
            found = _listed([f"`{path}` ({describe(leaf)})" for path, leaf in others])
            return f": it matches only {found}, not a floating-point array"
    if [path for path, _ in leaves] == [""]:
        return (
            ": the tree is a single array, whose path is empty "
            "(does `optax.inject_hyperparams` take the rules for a schedule? name them in `static_args`)"
        )
    if not parameters:
        return ": the tree has none"
    nearest = sorted(parameters)
    if isinstance(pattern, str):
        words = re.sub(r"\\.|[^\w/]+", "", pattern)
        nearest = difflib.get_close_matches(words, nearest, n=5, cutoff=0.0)
    return f"; the nearest paths are {_listed([f'`{path}`' for path in nearest], most=5)}"


def _listed(items: list[str], most: int = 3) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
