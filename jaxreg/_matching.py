"""Matching of patterns with the paths of leaves, and the errors for patterns that met none."""

import difflib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxreg._checks import brief, describe, is_inexact_array
from jaxreg._paths import is_masked
from jaxreg._term import Term

Pattern = str | Callable[[str, Any], bool]  # a compiled expression becomes a string


# What is left of a pattern for everything, without its anchors, groups and flags.
_EVERYTHING = ("", ".", ".*", ".*?", ".+", ".+?", r"[\s\S]*")


class Match(NamedTuple):
    """A leaf with the indices of the patterns that match it, the first of which has it.

    The leaf is a parameter (an array of a floating-point dtype), a `MaskedNode`, or a Python float. No pattern matches
    a Python float, and `explain` shows it.
    """

    path: str
    leaf: Any
    patterns: tuple[int, ...]


def checked_pattern(pattern: Any) -> Pattern:
    """Returns a pattern as a string or a predicate."""
    if isinstance(pattern, re.Pattern):
        pattern = _as_text(pattern)
    if isinstance(pattern, str):
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"the pattern {pattern!r} is not a regular expression, in which the `*` of a glob is `.*`: {error}"
            ) from error
        # (A pattern that looks ahead, such as `^(?!head/)`, matches the empty string, and not every path.)
        if not is_catch_all(pattern) and "(?" not in pattern and compiled.search("") and compiled.search("\0"):
            raise ValueError(
                f"the pattern {pattern!r} matches the empty string, and so every path; the `*` of a glob is `.*`, and "
                "a pattern that is to match everything is written '.*' or ''"
            )
        return pattern
    if callable(pattern) and not isinstance(pattern, type | Term):
        try:
            inspect.signature(pattern).bind("path", None)
        except TypeError as error:
            raise TypeError(f"the predicate {brief(pattern)} must take (path, leaf): {error}") from error
        except ValueError:
            pass  # it shows no signature
        return pattern
    raise TypeError(f"the pattern must be a string or a function (path, leaf) -> bool, got {describe(pattern)}")


def is_catch_all(pattern: Pattern) -> bool:
    """Returns whether a pattern is written to match every path. (`c*` matches every path too, and is not.)"""
    if not isinstance(pattern, str):
        return False
    left = re.sub(r"^[(][?][aimsx]+[)]|\\[AZ]|[()^$]", "", pattern)
    return left in _EVERYTHING and re.search(pattern, "\0") is not None


def _as_text(pattern: re.Pattern[Any]) -> str:
    """Returns the text of a compiled pattern, with its flags in it."""
    text = pattern.pattern
    if not isinstance(text, str):
        raise TypeError("the pattern must be a regular expression of text, got one of bytes")
    if re.compile(text).flags == pattern.flags:
        return text
    flags = "".join(letter for letter in "aimsx" if pattern.flags & re.RegexFlag[letter.upper()])
    return f"(?{flags}){re.sub(r'^[(][?][aimsux]+[)]', '', text)}"


def name_of(pattern: Pattern) -> str:
    """Returns how a pattern is shown: a string in quotes, and a predicate as a function."""
    if isinstance(pattern, str):
        return repr(pattern)
    return f"{getattr(pattern, '__name__', type(pattern).__name__)}(path, leaf)"


def shown(pattern: Pattern) -> str:
    """Returns how a pattern stands in tables: as it is, if it is text that can be seen, or else by its name."""
    return pattern if isinstance(pattern, str) and pattern else name_of(pattern)


def match(
    leaves: list[tuple[str, Any]],
    patterns: Sequence[Pattern],
    label: Callable[[int], str],
    *,
    strict: bool,
    only: Collection[int] | None = None,
    excluded: Collection[int] = (),
    others: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> list[Match]:
    """Returns every parameter and `MaskedNode` with the patterns that match it.

    `strict` may hold for some patterns `only`. `label` names a pattern in errors. `excluded` are the patterns that
    leave their parameters alone. `others` are the further names of shared parameters, by their path.
    """
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
                    if strict and not matches and not matching:
                        _check_names(pattern, path, others, label, index)
                else:
                    matches = not matching and not is_masked(leaf) and _ask(pattern, path, leaf, label, index)
                matching += (index,) if matches else ()
            found.append(Match(path, leaf, matching))
    if strict:
        _check_met(leaves, found, patterns, label, excluded, only)
    return found


def _check_names(
    pattern: re.Pattern[str],
    path: str,
    others: Mapping[str, tuple[str, ...]],
    label: Callable[[int], str],
    index: int,
) -> None:
    if named := [name for name in others.get(path, ()) if pattern.search(name)]:
        raise ValueError(
            f"{label(index)} matches `{named[0]}`, which is the same parameter as `{path}`: modules share it, and "
            f"rules know it by that path; write the pattern for `{path}`"
        )


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
    leaves: list[tuple[str, Any]],
    found: list[Match],
    patterns: Sequence[Pattern],
    label: Callable[[int], str],
    excluded: Collection[int],
    only: Collection[int] | None,
) -> None:
    paths = [path for path, leaf in leaves if _can_match(leaf)]
    masked = [path for path, leaf in leaves if is_masked(leaf)]
    faults = []
    for index, pattern in enumerate(patterns):
        if only is not None and index not in only:
            continue
        lost = [m for m in found if index in m.patterns[1:]]
        listed = _listed([f"`{m.path}` to rule {m.patterns[0]}" for m in lost])
        if any(m.patterns[:1] == (index,) for m in found):
            if index in excluded and _is_late(index, patterns, found, excluded):
                faults.append(
                    f"{label(index)} comes too late: it lost {listed}, and has nothing that a later rule would take; "
                    "write it first"
                )
        elif _may_lie_below(pattern, masked, paths):
            continue
        elif lost:
            faults.append(f"{label(index)} lost every match to earlier rules: {listed}")
        elif isinstance(pattern, str):
            faults.append(f"{label(index)} met no parameter{_hint(pattern, leaves)}")
        else:
            left = " that earlier rules had left" if index else ""
            faults.append(f"{label(index)} met no parameter{left}{_hint(pattern, leaves)}")
    if faults:
        raise ValueError(f"{'; '.join(faults)}. Correct the rule, or allow it with Rules(..., strict=False).")


def _is_late(index: int, patterns: Sequence[Pattern], found: list[Match], excluded: Collection[int]) -> bool:
    """Returns whether a rule that leaves parameters alone has lost some to a penalty, and keeps none from a later one.

    A rule for everything else may come last. A later predicate may be one that it keeps something from, because
    predicates are not asked about parameters that earlier rules have.
    """
    if is_catch_all(patterns[index]) or not any(
        index in m.patterns[1:] and m.patterns[0] not in excluded for m in found
    ):
        return False
    later = [i for i in range(index + 1, len(patterns)) if i not in excluded]
    keeps = any(m.patterns[:1] == (index,) and set(later) & set(m.patterns) for m in found)
    return not keeps and all(isinstance(patterns[i], str) for i in later)


def _may_lie_below(pattern: Pattern, masked: list[str], paths: list[str]) -> bool:
    """Returns whether a pattern may match below a `MaskedNode`, which can stand for a whole subtree.

    A subtree is assumed to have paths that end as other paths end, in one of the most common ways. Nothing is known of
    a predicate.
    """
    if not isinstance(pattern, str):
        return bool(masked)
    counts: Counter[str] = Counter()
    for path in paths:
        keys = path.split("/")
        counts.update("/".join(keys[start:]) for start in range(len(keys)))
    ends = ["", *(end for end, _ in counts.most_common(100))]
    compiled = re.compile(pattern)
    return any(compiled.search(f"{path}/{end}") for path in masked for end in ends)


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
