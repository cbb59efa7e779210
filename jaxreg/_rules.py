"""Rules: which regularizer meets which leaf of a tree, by path."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg._base import Regularizer, as_regularizer, penalty
from jaxreg._config import Penalty, get
from jaxreg._configured import from_dict, to_dict
from jaxreg._explain import Explanation, Row
from jaxreg._matching import Match, Pattern, checked_pattern, match
from jaxreg._numerics import describe, is_inexact_array, total
from jaxreg._paths import is_masked, replace_leaves
from jaxreg._pytree import register


class Rules:
    """Regularizers for the parameters of a tree, chosen by path: Σ over leaves of the penalty of their rule.

    Args:
      *pairs: `(pattern, regularizer)`, in order; the first pattern that matches a leaf wins. A pattern is a regular
        expression, searched for in the path (`re.search`; the keys are joined by `/`), or a function
        `(path, leaf) -> bool`. A regularizer is all that `jaxreg.get` takes: a regularizer, a function from an array
        to a scalar, a name, a dict; or None, which leaves the parameter alone.
      strict: whether a rule that met no parameter, or lost every match to earlier rules, is an error.

    The parameters are the leaves that are floating-point arrays; other leaves have no penalty. A parameter that no rule
    matches has none either. Exceptions come first, since a rule may lose some of its matches to earlier ones:
    `(r"head/", None), (r"kernel$", L2())`.

    A tree may be a nest of dicts, a Flax `FrozenDict`, an `nnx.Module` (its `nnx.Param`s) or `nnx.State` (all that it
    holds: take `nnx.state(model, nnx.Param)`), an Equinox module, or any other pytree. A box such as `nn.Partitioned`
    gives its array under its own path. Where `optax.masked` or `optax.partition` have left a
    `MaskedNode`, a pattern that matches its path counts as met and costs nothing.

    `Rules` is a pytree whose leaves are the strengths.

    Raises:
      ValueError: no pairs, or a pattern that is no regular expression; when applied to a tree, a rule that met
        nothing or lost every match, or a penalty that does not fit its parameter. The message names the rule and path.
      TypeError: a pair, a pattern or a regularizer of another type.

    >>> params = {"hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 1))}}
    >>> rules = jaxreg.Rules((r"head/", None), (r"kernel$", jaxreg.L2(0.5)))
    >>> float(rules(params))
    3.0
    >>> rules.matches(params)
    {'head/kernel': 0, 'hidden/bias': None, 'hidden/kernel': 1}
    """

    patterns: tuple[Pattern, ...]
    regularizers: tuple[Regularizer | None, ...]
    strict: bool
    _static: ClassVar[frozenset[str]] = frozenset({"patterns", "strict"})

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
            if not isinstance(pair, tuple | list) or len(pair) != 2 or isinstance(pair[0], tuple | list):
                raise TypeError(
                    f"`pairs[{index}]` must be (pattern, regularizer), got {describe(pair)}; "
                    "the pairs are arguments of their own, Rules(pair, pair)"
                )
            try:
                patterns.append(checked_pattern(pair[0]))
                regularizer = get(pair[1])
            except (TypeError, ValueError) as error:
                raise type(error)(f"`pairs[{index}]`, {pair[0]!r}: {error}") from error
            regularizers.append(None if regularizer is None else as_regularizer(regularizer))
        object.__setattr__(self, "patterns", tuple(patterns))
        object.__setattr__(self, "regularizers", tuple(regularizers))
        object.__setattr__(self, "strict", strict)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __call__(self, tree: Any, *, key: jax.Array | None = None) -> jax.Array:
        """The sum of the penalties of all parameters, a scalar of at least float32.

        The random key is for regularizers that estimate from a sample; without one of these it has no effect.
        """
        return total(self.breakdown(tree, key=key).values())

    def breakdown(self, tree: Any, *, key: jax.Array | None = None) -> dict[str, jax.Array]:
        """The penalty of each parameter that has one, by path."""
        found = [m for m in self._match(tree) if self._regularizer(m) is not None]
        return {m.path: self._penalty(m, _fold(key, index)) for index, m in enumerate(found)}

    def matches(self, tree: Any) -> dict[str, int | None]:
        """The index of each parameter's rule by path, None where no rule matches."""
        return {m.path: m.rule for m in self._match(tree) if not is_masked(m.leaf)}

    def prox(self, tree: Any, step: Any) -> Any:
        """The tree after a prox step: argmin_y ½‖y − tree‖² + step · rules(y), each parameter by its own rule.

        In a loop of your own it follows the step of gradient descent, with the learning rate as `step`. Parameters
        that no rule penalizes are returned as they are.

        Args:
          tree: a tree of parameters; of an `nnx.Module`, its `nnx.state(model, nnx.Param)`.
          step: a number >= 0, or a function from the path and the parameter to a step: a number, or an array of the
            shape of the parameter, with a step for each weight.

        Raises:
          NotImplementedError: a regularizer has no prox.
          TypeError, ValueError: as when the rules are called; or `tree` holds an `nnx.Module`.

        >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L1(0.5)))
        >>> rules.prox({"kernel": jnp.array([2.0, -0.1]), "bias": jnp.ones(1)}, 1.0)["kernel"]
        Array([1.5, 0. ], dtype=float32)
        """
        found = [(m, regularizer) for m in self._match(tree) if (regularizer := self._regularizer(m)) is not None]
        new = {}
        for m, regularizer in found:
            with self._located(m):
                result = regularizer.prox(m.leaf, step(m.path, m.leaf) if callable(step) else step)
                if describe(result) != describe(jnp.asarray(m.leaf)):
                    raise TypeError(
                        f"the prox of {regularizer!r} must return {describe(m.leaf)}, got {describe(result)}"
                    )
                new[m.path] = result
        return replace_leaves(tree, new)

    def explain(self, tree: Any, *, key: jax.Array | None = None) -> Explanation:
        """A table of which rule met which parameter and what each one costs, and one of what each rule met and lost.

        Print it, or show it in a notebook; `rich.print` folds it to the width of a terminal, and `rows` has it as data.
        Of a tree from `jax.eval_shape` it shows everything but the penalties, so rules can be checked before anything
        is allocated.
        """
        rows = tuple(self._row(m, _fold(key, index)) for index, m in enumerate(self._match(tree)))
        return Explanation(rows, tuple((_name(p), _kind(r)) for p, r in self._pairs()))

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
        if not isinstance(config, Mapping) or not {"pairs"} <= set(config) <= {"pairs", "strict"}:
            got = sorted(config) if isinstance(config, Mapping) else describe(config)
            raise ValueError(f"`config` must be a dict with the keys 'pairs' and 'strict', got {got}")
        return cls(*from_dict(config["pairs"], custom_objects), strict=config.get("strict", True))

    def __repr__(self) -> str:
        pairs = ", ".join(f"({_name(p)!r}, {r!r})" for p, r in self._pairs())
        return f"Rules({pairs}{'' if self.strict else ', strict=False'})"

    def _pairs(self) -> list[tuple[Pattern, Regularizer | None]]:
        return list(zip(self.patterns, self.regularizers, strict=True))

    def label(self, index: int) -> str:
        """What an error calls a rule."""
        return f"rule {index} ({_name(self.patterns[index])!r}, {_kind(self.regularizers[index])})"

    def _match(self, tree: Any) -> list[Match]:
        return match(tree, self.patterns, self.label, strict=self.strict)

    def _regularizer(self, m: Match) -> Regularizer | None:
        """What penalizes a match; nothing where no rule or None does, or where the leaf has been masked."""
        return None if m.rule is None or is_masked(m.leaf) else self.regularizers[m.rule]

    def _penalty(self, m: Match, key: jax.Array | None) -> jax.Array:
        regularizer = self._regularizer(m)
        assert regularizer is not None
        with self._located(m):
            return penalty(regularizer, m.leaf, key)

    @contextlib.contextmanager
    def _located(self, m: Match) -> Iterator[None]:
        """Gives an error its place in the tree."""
        assert m.rule is not None
        where = f"at `{m.path}`, under {self.label(m.rule)}"
        try:
            yield
        except Exception as error:
            if type(error) in (TypeError, ValueError, NotImplementedError):
                raise type(error)(f"{where}: {error}") from error
            error.add_note(where)
            raise

    def _row(self, m: Match, key: jax.Array | None) -> Row:
        if is_masked(m.leaf):
            return Row(m.path, "masked", 0, m.patterns, None)
        if not is_inexact_array(m.leaf):
            return Row(m.path, f"{describe(m.leaf)}, no array", 1, (), None)
        cost = None
        if self._regularizer(m) is not None:
            if isinstance(m.leaf, jax.ShapeDtypeStruct):
                jax.eval_shape(lambda leaf: self._penalty(m._replace(leaf=leaf), key), m.leaf)
            elif not isinstance(value := self._penalty(m, key), jax.core.Tracer):
                cost = float(value)
        return Row(m.path, describe(m.leaf), int(np.prod(m.leaf.shape)), m.patterns, cost)


register(Rules)


def _fold(key: jax.Array | None, index: int) -> jax.Array | None:
    """A key of its own for each parameter."""
    return None if key is None else jax.random.fold_in(key, index)


def _name(pattern: Pattern) -> str:
    return pattern if isinstance(pattern, str) else getattr(pattern, "__name__", type(pattern).__name__)


def _kind(regularizer: Regularizer | None) -> str:
    return "left alone" if regularizer is None else repr(regularizer)
