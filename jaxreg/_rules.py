"""Rules: which regularizer meets which leaf of a tree, by path."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Self

import jax
import numpy as np

from jaxreg._base import Regularizer, as_regularizer, from_dict, to_dict
from jaxreg._config import Penalty, get
from jaxreg._explain import Explanation, Row
from jaxreg._numerics import checked_scalar, describe, is_float_array, total
from jaxreg._paths import is_masked, leaves_with_paths
from jaxreg._pytree import register

Pattern = str | Callable[[str, Any], bool]


class _Match(NamedTuple):
    path: str
    leaf: Any
    rule: int | None


class Rules:
    """Regularizers for the parameters of a tree, chosen by path: Σ over leaves of the penalty of their rule.

    Args:
      *pairs: `(pattern, regularizer)`, in order; the first pattern that matches a leaf wins. A pattern is a regular
        expression, searched for in the path (`re.search`; the keys are joined by `/`), or a function
        `(path, leaf) -> bool`. A regularizer is all that `jaxreg.get` takes: a regularizer, a function from an array
        to a scalar, a name, a dict; or None, which leaves the parameter alone.
      strict: whether a rule that met no parameter, or lost every match to earlier rules, is an error.

    The parameters are the leaves that are real floating-point arrays; other leaves have no penalty. A parameter that no
    rule matches has none either. A tree may be a nest of dicts, a Flax `FrozenDict`, an
    `nnx.State` or `nnx.Module` (its `nnx.Param`s), an Equinox module, or any other pytree. A box such as
    `nn.Partitioned` gives its array under its own path. Where `optax.masked` or `optax.partition` have left a
    `MaskedNode`, a pattern that matches its path counts as met and costs nothing.

    `Rules` is a pytree whose leaves are the strengths.

    Raises:
      ValueError: no pairs, or a pattern that is no regular expression; when applied to a tree, a rule that met
        nothing, or a penalty that does not fit its parameter. The message names the rule and the path.
      TypeError: a pair, a pattern or a regularizer of another type.

    >>> params = {"hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 1))}}
    >>> rules = jaxreg.Rules((r"head/", None), (r"kernel$", jaxreg.L2(0.5)))
    >>> float(rules(params))
    3.0
    >>> rules.matches(params)
    {'head/kernel': 0, 'hidden/bias': None, 'hidden/kernel': 1}
    """

    def __init__(self, *pairs: tuple[Pattern, Penalty | str | Mapping[str, Any] | None], strict: bool = True):
        if not pairs:
            raise ValueError(
                "`pairs` must hold at least one (pattern, regularizer); "
                "to leave every parameter alone, write Rules((r'', None))"
            )
        if not isinstance(strict, bool):
            raise TypeError(f"`strict` must be a bool, got {describe(strict)}")
        patterns, regularizers = [], []
        for index, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(
                    f"`pairs[{index}]` must be (pattern, regularizer), got {describe(pair)}; "
                    "the pairs are arguments of their own, Rules(pair, pair)"
                )
            patterns.append(_checked_pattern(pair[0], index))
            try:
                regularizer = get(pair[1])
            except (TypeError, ValueError) as error:
                raise type(error)(f"`pairs[{index}]`, pattern {pair[0]!r}: {error}") from error
            regularizers.append(None if regularizer is None else as_regularizer(regularizer))
        self.patterns: tuple[Pattern, ...] = tuple(patterns)
        self.regularizers: tuple[Regularizer | None, ...] = tuple(regularizers)
        self.strict = strict

    def __call__(self, tree: Any) -> jax.Array:
        """The sum of the penalties of all parameters, a scalar of at least float32."""
        return total(self.breakdown(tree).values())

    def breakdown(self, tree: Any) -> dict[str, jax.Array]:
        """The penalty of each parameter that has one, by path."""
        return {
            match.path: self._penalty(match)
            for match in self._resolve(tree)
            if match.rule is not None and self.regularizers[match.rule] is not None and not is_masked(match.leaf)
        }

    def matches(self, tree: Any) -> dict[str, int | None]:
        """The index of each parameter's rule by path, None where no rule matches."""
        return {m.path: m.rule for m in self._resolve(tree) if not is_masked(m.leaf)}

    def explain(self, tree: Any) -> Explanation:
        """A table of which rule met which parameter, and what each one costs.

        Print it, or show it in a notebook; `rows` has it as data. Of a tree from `jax.eval_shape` it shows everything
        but the penalties, so rules can be checked before anything is allocated.
        """
        rows = tuple(self._row(match) for match in self._resolve(tree))
        return Explanation(
            rows, tuple((str(p) if isinstance(p, str) else _name(p), _kind(r)) for p, r in self._pairs())
        )

    def get_config(self) -> dict[str, Any]:
        """The rules as plain JSON; a predicate must be a named function.

        Raises:
          TypeError: a strength is traced or stacked, or a function has no name.
        """
        pairs = [
            [pattern if isinstance(pattern, str) else to_dict(pattern), regularizer and to_dict(regularizer)]
            for pattern, regularizer in self._pairs()
        ]
        return {"pairs": pairs, "strict": self.strict}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """The rules whose `get_config` gave `config`; your own classes and functions by name in `custom_objects`."""
        return cls(*from_dict(config["pairs"], custom_objects), strict=config.get("strict", True))

    def __repr__(self) -> str:
        pairs = ", ".join(f"({_name(p)}, {_kind(r)})" for p, r in self._pairs())
        return f"Rules({pairs}{'' if self.strict else ', strict=False'})"

    def _pairs(self) -> list[tuple[Pattern, Regularizer | None]]:
        return list(zip(self.patterns, self.regularizers, strict=True))

    def _label(self, index: int) -> str:
        return f"rule {index} ({_name(self.patterns[index])}, {_kind(self.regularizers[index])})"

    def _resolve(self, tree: Any) -> list[_Match]:
        """Every parameter and `MaskedNode` of `tree` with its rule."""
        leaves = leaves_with_paths(tree)
        found = []
        taken: dict[int, list[tuple[str, int]]] = {}  # what a pattern matched, and whose it became
        for path, leaf in leaves:
            if not is_masked(leaf) and not is_float_array(leaf):
                continue
            rule = None
            for index in range(len(self.patterns)):
                if self._matches(index, path, leaf, claimed=rule is not None):
                    rule = index if rule is None else rule
                    taken.setdefault(index, []).append((path, rule))
            found.append(_Match(path, leaf, rule))
        if self.strict:
            self._check_met(leaves, taken)
        return found

    def _matches(self, index: int, path: str, leaf: Any, *, claimed: bool) -> bool:
        """Whether rule `index` matches. Predicates see arrays only, and none that an earlier rule has claimed."""
        pattern = self.patterns[index]
        if isinstance(pattern, str):
            return re.search(pattern, path) is not None
        if claimed or is_masked(leaf):
            return False
        answer = pattern(path, leaf)
        if not isinstance(answer, bool | np.bool_):
            raise TypeError(
                f"the predicate of {self._label(index)} must return a bool, got {describe(answer)} at `{path}`"
            )
        return bool(answer)

    def _check_met(self, leaves: list[tuple[str, Any]], taken: dict[int, list[tuple[str, int]]]) -> None:
        masked = [path for path, leaf in leaves if is_masked(leaf)]
        faults = []
        for index, pattern in enumerate(self.patterns):
            claims = taken.get(index, [])
            if any(rule == index for _, rule in claims):
                continue
            if claims:
                lost = _listed([f"`{path}` to rule {rule}" for path, rule in claims])
                faults.append(f"{self._label(index)} lost every match to earlier rules: {lost}")
            elif isinstance(pattern, str) or not masked:
                faults.append(f"{self._label(index)} met no parameter{_hint(pattern, leaves)}")
        if faults:
            behind = (
                f"The tree holds MaskedNode at {_listed([f'`{path}`' for path in masked])}; "
                "a rule for what lies below such a path cannot be checked here. "
                if masked
                else ""
            )
            raise ValueError(f"{'; '.join(faults)}. {behind}Rules(..., strict=False) allows it.")

    def _penalty(self, match: _Match) -> jax.Array:
        assert match.rule is not None
        regularizer = self.regularizers[match.rule]
        assert regularizer is not None
        try:
            return checked_scalar(regularizer(match.leaf), of=_kind(regularizer))
        except Exception as error:
            _raise_located(error, f"at `{match.path}`, under {self._label(match.rule)}")

    def _row(self, match: _Match) -> Row:
        if is_masked(match.leaf):
            return Row(match.path, "masked", 0, match.rule, None)
        penalty = None
        if match.rule is not None and self.regularizers[match.rule] is not None:
            if isinstance(match.leaf, jax.ShapeDtypeStruct):
                jax.eval_shape(lambda leaf: self._penalty(match._replace(leaf=leaf)), match.leaf)
            elif not isinstance(value := self._penalty(match), jax.core.Tracer):
                penalty = float(value)
        return Row(match.path, describe(match.leaf), int(np.prod(match.leaf.shape)), match.rule, penalty)


register(Rules)


def _checked_pattern(pattern: Any, index: int) -> Pattern:
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`pairs[{index}]`: the pattern {pattern!r} is no regular expression: {error}") from error
        return pattern
    if callable(pattern) and not isinstance(pattern, type | Regularizer):
        return pattern
    raise TypeError(
        f"`pairs[{index}]`: the pattern must be a string or a function (path, leaf) -> bool, got {describe(pattern)}"
    )


def _name(pattern: Pattern) -> str:
    return repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", repr(pattern))


def _kind(regularizer: Regularizer | None) -> str:
    return "left alone" if regularizer is None else repr(regularizer)


def _listed(items: list[str], most: int = 3) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def _hint(pattern: Pattern, leaves: list[tuple[str, Any]]) -> str:
    """What a rule that met nothing may have meant."""
    others = [(path, leaf) for path, leaf in leaves if not is_masked(leaf) and not is_float_array(leaf)]
    if isinstance(pattern, str):
        others = [(path, leaf) for path, leaf in others if re.search(pattern, path)]
        if others:
            found = _listed([f"`{path}` ({describe(leaf)})" for path, leaf in others])
            return f": it matches only {found}, no real floating-point array"
    paths = [path for path, leaf in leaves if is_masked(leaf) or is_float_array(leaf)]
    if not paths:
        return ": the tree has none"
    if isinstance(pattern, str):
        words = re.sub(r"\\.|[^\w/]+", "", pattern)
        paths = difflib.get_close_matches(words, paths, n=5, cutoff=0.0)
    return f"; the nearest paths are {_listed([f'`{path}`' for path in paths], most=5)}"


def _raise_located(error: Exception, where: str) -> NoReturn:
    """Raises `error` again with its place in the tree."""
    if type(error) in (TypeError, ValueError):
        raise type(error)(f"{where}: {error}") from error
    error.add_note(where)
    raise error
