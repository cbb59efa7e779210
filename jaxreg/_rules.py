"""Rules: which regularizer meets which leaf of a tree, by path."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, Self

import flax.serialization
import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxreg._base import Sum, as_term, is_scale, not_for_a_loss
from jaxreg._checks import brief, check_bool, check_key, describe, is_inexact_array
from jaxreg._config import from_dict, to_dict
from jaxreg._evaluate import is_nothing
from jaxreg._explain import Explanation, Row
from jaxreg._matching import Pattern, checked_pattern, match, name_of, shown
from jaxreg._memory import begun, in_tree, remembered, renewed
from jaxreg._met import Met, penalties_of
from jaxreg._numerics import add_up
from jaxreg._paths import (
    check_no_optimizer_state,
    is_masked,
    leaves_with_paths,
    other_names,
    replace_leaves,
)
from jaxreg._pytree import identity, register
from jaxreg._serialization import RegularizerLike, get
from jaxreg._shards import varying
from jaxreg._short import pairs_from, plain
from jaxreg._term import Term


class Rules:
    """Regularizers for the parameters of a tree, chosen by path: the sum over leaves of the penalty of their rule.

    Args:
      *pairs: `(pattern, regularizer)`, in order. The first pattern that matches a leaf wins. A pattern is a regular
        expression, searched for anywhere in the path (`re.search`; the keys are joined by `/`), as text or compiled, or
        a function `(path, leaf) -> bool`. A regularizer is anything that `jaxreg.get` takes: a regularizer, a function
        from an array to a scalar, a name, a dict, or None, which leaves the parameter alone. A constraint of
        `jaxreg.constraints` may stand in its place, or be added to it.
      strict: whether what cannot be meant is an error: a rule that met no parameter, or lost every match to earlier
        rules; None that comes too late, because an earlier rule has what it was to leave alone; a tree that holds the
        state of an optimizer; a pattern for another name of a parameter that modules of NNX share.

    The parameters are the leaves that are floating-point arrays. Other leaves have no penalty, and neither has a
    parameter that no rule matches. Write exceptions first, since a rule loses the matches that earlier ones have:
    `(r"head/", None), (r"kernel$", L2())`.

    A tree may be a nest of dicts, a Flax `FrozenDict`, an Equinox module, or any other pytree. For an `nnx.Module`,
    only its `nnx.Param`s are used. An `nnx.State` is used whole, so take `nnx.state(model, nnx.Param)`. A box such as
    `nn.Partitioned` gives its array under its own path. Where `optax.masked` or `optax.partition` have left a
    `MaskedNode`, a pattern that matches its path counts as met and costs nothing.

    `Rules` is a pytree whose leaves are the strengths. `2.0 * rules` has all penalties twice as strong. Rules made of
    equal parts are equal, so they serve as static arguments of `jax.jit`.

    Raises:
      ValueError: there are no pairs, or a pattern is not a regular expression, or matches the empty string and so
        every path, as `c*` does. (`''` and `'.*'` are meant so.) When applied to a tree: a rule that cannot be meant,
        as under `strict`, or a penalty that does not fit its parameter. The message names the rule and the path.
      TypeError: a pair, a pattern or a regularizer has another type.

    >>> params = {"hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 1))}}
    >>> rules = jaxreg.Rules((r"head/", None), (r"kernel$", jaxreg.L2(0.5)))
    >>> float(rules(params))
    3.0
    >>> rules.matches(params)
    {'head/kernel': 0, 'hidden/bias': None, 'hidden/kernel': 1}
    """

    patterns: tuple[Pattern, ...]
    regularizers: tuple[Term | None, ...]
    strict: bool
    specs: tuple[tuple[str, PartitionSpec], ...] | None
    _static: ClassVar[frozenset[str]] = frozenset({"patterns", "strict", "specs"})

    def __init__(self, *pairs: tuple[Pattern, RegularizerLike | str | Mapping[str, Any] | None], strict: bool = True):
        if not pairs:
            raise ValueError(
                "`pairs` must hold at least one (pattern, regularizer); "
                "to leave every parameter alone, write Rules((r'', None))"
            )
        check_bool(strict, name="strict")
        patterns, regularizers = [], []
        for index, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2 or isinstance(pair[0], tuple | list):
                raise TypeError(
                    f"`pairs[{index}]` must be (pattern, regularizer), got {describe(pair)}; "
                    "the pairs are arguments of their own, Rules(pair, pair)"
                )
            if isinstance(pair[1], Rules):
                raise TypeError(f"`pairs[{index}]` must have a regularizer for arrays, got Rules, which are for trees")
            try:
                patterns.append(checked_pattern(pair[0]))
                regularizer = get(pair[1])
            except (TypeError, ValueError) as error:
                raise type(error)(f"`pairs[{index}]`, {pair[0]!r}: {error}") from error
            regularizers.append(None if regularizer is None else as_term(regularizer))
        object.__setattr__(self, "patterns", tuple(patterns))
        object.__setattr__(self, "regularizers", tuple(regularizers))
        object.__setattr__(self, "strict", strict)
        object.__setattr__(self, "specs", None)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and identity(self) == identity(other)

    def __hash__(self) -> int:
        return hash(identity(self))

    # NumPy's scalars and arrays leave `scale * rules` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def __mul__(self, scale: Any) -> "Rules":
        if not is_scale(scale):
            return NotImplemented
        return self._with([None if r is None else scale * r for r in self.regularizers])

    __rmul__ = __mul__

    def _with(self, regularizers: Iterable[Term | None]) -> Self:
        """Returns the same rules with other regularizers."""
        rules = type(self)(*zip(self.patterns, regularizers, strict=True), strict=self.strict)
        object.__setattr__(rules, "specs", self.specs)
        return rules

    def with_specs(self, specs: Any) -> Self:
        """Returns these rules for use inside `jax.shard_map`, where a parameter is the shard that a device has.

        Every method, and every transform that is made with them, then sees the whole: norms, maxima, cosines and
        singular values are taken over the devices first. `rules(params)` is the penalty of the whole, the same on every
        device, so the loss to differentiate is `pmean(local_loss) + rules(params)`. A prox step returns the shard of
        the new parameter.

        Work is divided as the parameter is. Devices that hold the same shard, because its spec does not name their
        axis, share the work on matrices too. For a class or function of your own the parameter is gathered, since
        nothing is known of what it does. Whole parameters that differ from device to device cannot be given.

        Without specs, a sum over weights, such as `L2`, is that of the shard, and any other penalty of a shard is an
        error. With `check_vma=False` JAX does not know which arrays are shards. Specs are an error there, and arrays
        are taken as whole. Outside of `jax.shard_map`, arrays are whole, and specs have no effect.

        Args:
          specs: the `in_specs` of the parameters, a `PartitionSpec` or a tree of them. It may be a prefix: a spec holds
            for all that is below its path.

        Raises:
          TypeError: a leaf of `specs` is no `PartitionSpec`.
          ValueError: When applied to a tree: a shard has no spec, or its spec is not its `in_specs`. The message has
            its path.

        >>> P = jax.sharding.PartitionSpec
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> specs = {"kernel": P("data")}
        >>> rules = jaxreg.Rules((r"kernel$", jaxreg.GroupLasso(1.0)))
        >>> params = {"kernel": jnp.ones((16 * jax.device_count(), 2))}
        >>> whole = jax.shard_map(rules.with_specs(specs), mesh=mesh, in_specs=(specs,), out_specs=P())
        >>> bool(jnp.allclose(jax.jit(whole)(params), rules(params)))
        True
        """
        filled = jax.tree.map(lambda s: PartitionSpec() if s is None else s, specs, is_leaf=lambda s: s is None)
        found = leaves_with_paths(filled)
        for path, spec in found:
            where = f" at `{path}`" if path else ""
            if not isinstance(spec, PartitionSpec):
                hint = "; take its `.spec`" if isinstance(spec, jax.sharding.Sharding) else ""
                raise TypeError(
                    f"`specs` must hold a PartitionSpec for each parameter, got {describe(spec)}{where}{hint}"
                )
            names = [name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))]
            if not all(name is None or isinstance(name, str) for name in names):
                raise TypeError(f"`specs` must hold names of mesh axes or None, got {spec}{where}")
        rules = self._with(self.regularizers)
        object.__setattr__(rules, "specs", tuple(found))
        return rules

    def _spec(self, path: str) -> PartitionSpec | None:
        """Returns the spec of a parameter: the one with its path, or with the longest that it lies below."""
        above = [(p, spec) for p, spec in self.specs or () if not p or path == p or path.startswith(f"{p}/")]
        return max(above, key=lambda found: len(found[0]))[1] if above else None

    def at(self, count: Any) -> Self:
        """Returns the rules with numbers in place of schedules: their values at a count of steps.

        The transforms do this at each update, with the count in their state. In a loss, write `rules.at(step)(params)`.

        >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L2(optax.linear_schedule(0.0, 0.5, 10))))
        >>> float(rules.at(10)({"kernel": jnp.array([2.0])}))
        2.0
        """
        resolved: list[Term | None] = []
        for index, regularizer in enumerate(self.regularizers):
            try:
                resolved.append(None if regularizer is None else regularizer.at(count))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.label(index)}, at count {brief(count)}: {error}") from error
        return self._with(resolved)

    @property
    def has_schedule(self) -> bool:
        """True if a strength is a schedule, which has a value only at a count of steps: see `at`."""
        return any(r is not None and r.has_schedule for r in self.regularizers)

    @property
    def has_memory(self) -> bool:
        """True if a regularizer or a constraint keeps something for each parameter: see `init`."""
        return any(r is not None and r.has_memory for r in self.regularizers)

    def init(self, tree: Any, **trees: Any) -> Any:
        """Returns the memory of all parameters: what their regularizers and constraints keep from step to step.

        It is `()` where nothing is kept. Else it has the structure of the tree, as Adam's moments have, with the memory
        of each parameter in its place and `optax.MaskedNode()` where nothing is kept. An `nnx.Module` gives the
        structure of its state. It holds copies, so the tree may be donated. The transforms call this at `init`. Call it
        yourself to give them another memory, or in a loss: `rules(params, memory=rules.init(pretrained))`.

        Memory is found by path, so it may come from a tree that is wrapped differently, and hold more than is asked
        for.

        Args:
          tree: a tree of parameters.
          **trees: further trees with entries under the same paths, for the regularizers that take them by name:
            `importance` is for `jaxreg.Anchor`.

        Raises:
          TypeError: no regularizer takes a tree of that name, or one needs a tree that is not given.
          ValueError: a rule whose regularizer keeps something met no parameter, a further tree has no entry for a
            parameter, or a regularizer refuses the entry, as `Anchor` does one of another shape. The message has the
            path.

        >>> rules = jaxreg.Rules((r"kernel$", jaxreg.Anchor(0.5)))
        >>> rules.init({"kernel": jnp.ones(2), "bias": jnp.ones(1)})
        {'bias': MaskedNode(), 'kernel': Array([1., 1.], dtype=float32)}
        """
        taken = {name for r in self.regularizers if r is not None for name in r._extras()}
        if strange := sorted(set(trees) - taken):
            known = f"they take {sorted(taken)}" if taken else "none takes any"
            raise TypeError(f"no regularizer takes a tree named `{strange[0]}`; {known}")
        if not self.has_memory:
            return ()
        if self.strict:
            check_no_optimizer_state(tree)
        leaves = leaves_with_paths(tree)
        keeping = [i for i, r in enumerate(self.regularizers) if r is not None and r.has_memory]
        others = other_names(tree, [path for path, _ in leaves])
        found = self.met_leaves(leaves, strict=bool(leaves), only=keeping, others=others)
        return in_tree(tree, leaves, begun(found, trees))

    def updated(self, tree: Any, memory: Any) -> Any:
        """Returns the memory for the next step, from the parameters that this step met.

        The transforms call this at each update. Most memory stays as it is: references, norms and masks do.
        """
        if not any(r is not None and r.has_memory and r.renews_memory for r in self.regularizers):
            return memory
        return renewed(self._met(tree, memory), memory)

    def fitted_memory(self, tree: Any, memory: Any) -> Any:
        """Returns a copy of a memory in the structure of `tree`, checked against its parameters."""
        leaves = leaves_with_paths(tree)
        keeping = [m for m in self.met_leaves(leaves, strict=False, memory=memory) if m.has_memory]
        for m in keeping:
            m.check()
        return in_tree(tree, leaves, {m.path: m.memory for m in keeping})

    def check_penalties(self) -> None:
        """Raises an error if a rule has a constraint, which has no value and no gradient."""
        for index, regularizer in enumerate(self.regularizers):
            if regularizer is not None and not regularizer._is_penalty():
                raise not_for_a_loss(self.label(index))

    def __call__(self, tree: Any, *, key: jax.Array | None = None, memory: Any = ()) -> jax.Array:
        """Returns the sum of the penalties of all parameters, a scalar in at least float32.

        The random key is for regularizers that estimate from a sample, and the memory, from `init`, for those that keep
        something. Neither has an effect on the others.

        Raises:
          TypeError: a rule has a constraint, which has no value, or a strength is a schedule: see `at`.
          ValueError: `memory` is missing, or has no entry for a parameter, or one of another shape.
        """
        self.check_penalties()
        return add_up(self.breakdown(tree, key=key, memory=memory).values())

    def breakdown(self, tree: Any, *, key: jax.Array | None = None, memory: Any = ()) -> dict[str, jax.Array]:
        """Returns the penalty of each parameter that has one, by path. A constraint counts as 0."""
        check_key(key, or_old=True)
        met = [m for m in self._met(tree, memory) if m.regularizer is not None]
        return {m.path: penalty for m, penalty in zip(met, penalties_of(met, key), strict=True)}

    def by_rule(self, tree: Any, *, key: jax.Array | None = None, memory: Any = ()) -> dict[int, jax.Array]:
        """Returns the penalty of each rule, by its index, and 0 for a rule that leaves its parameters alone."""
        check_key(key, or_old=True)
        met = [m for m in self._met(tree, memory) if m.regularizer is not None]
        penalties = penalties_of(met, key)
        return {
            rule: add_up(penalty for m, penalty in zip(met, penalties, strict=True) if m.patterns[0] == rule)
            for rule in range(len(self.patterns))
        }

    def matches(self, tree: Any) -> dict[str, int | None]:
        """Returns the index of each parameter's rule by path, and None where no rule matches."""
        return {met.path: next(iter(met.patterns), None) for met in self._met(tree) if not is_masked(met.leaf)}

    def prox(self, tree: Any, step: Any = None, *, memory: Any = ()) -> Any:
        """Returns the tree after a prox step: argmin_y ½‖y − tree‖² + step · rules(y), for each parameter by its rule.

        In a training loop of your own it follows the step of gradient descent, with the learning rate as `step`. A
        constraint is projected on, whatever the step: `rules.prox(params)` projects a tree where all rules are
        constraints. Parameters that no rule meets are returned as they are.

        Args:
          tree: a tree of parameters. For an `nnx.Module`, give `nnx.state(model, nnx.Param)`.
          step: a number >= 0, or a function from the path and the parameter to a step. A step is a number, or an array
            of the shape of the parameter with a step for each weight. It may be left out where there is no penalty.
          memory: from `init`, for regularizers and constraints that keep something.

        Raises:
          NotImplementedError: a regularizer has no prox.
          TypeError, ValueError: as when the rules are called, `step` is missing, or `tree` holds an `nnx.Module`.

        >>> rules = jaxreg.Rules((r"kernel$", jaxreg.L1(0.5)))
        >>> rules.prox({"kernel": jnp.array([2.0, -0.1]), "bias": jnp.ones(1)}, 1.0)["kernel"]
        Array([1.5, 0. ], dtype=float32)
        """
        return replace_leaves(
            tree, {met.path: met.prox(step) for met in self._met(tree, memory) if met.regularizer is not None}
        )

    def explain(self, tree: Any, *, key: jax.Array | None = None, memory: Any = ()) -> Explanation:
        """Returns two tables: which rule met which parameter and the cost of each, and what each rule met and lost.

        The first one says what a regularizer sees in a kernel, such as "12 matrices 32×8" or "64 groups of 64". For a
        constraint it has the distance of the parameter from the set. A schedule has no cost yet, and what keeps
        something has one only with `memory`.

        Print them, or show them in a notebook. `rich.print` folds them to the width of a terminal. `rows` has the first
        one as data, and `by_rule` the penalties of the second one. For a tree from `jax.eval_shape` they show all but
        the penalties, so that rules can be checked before anything is allocated.
        """
        check_key(key, or_old=True)
        rows = tuple(_row(met, key) for met in self._met(tree, memory))
        return Explanation(rows, tuple((shown(p), _kind(r)) for p, r in self._pairs()))

    def get_config(self) -> dict[str, Any]:
        """Returns the rules as plain JSON. A predicate must be a function with a name.

        Raises:
          TypeError: a strength is traced or stacked, a function has no name, or the rules have specs.
        """
        if self.specs is not None:
            raise TypeError("a config holds no specs; take that of the rules before `with_specs`")
        pairs = [
            [pattern if isinstance(pattern, str) else to_dict(pattern), regularizer and to_dict(regularizer)]
            for pattern, regularizer in self._pairs()
        ]
        return {"pairs": pairs, "strict": self.strict}

    @classmethod
    def from_config(cls, config: Any, custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Returns the rules that a config describes: what `get_config` returns, or a short form that is easy to write.

        The short form is a list of rules, as from JSON or YAML, or a dict with the list under `rules`, and `strict`
        beside it if it is not True:

            - {pattern: head/, regularizer: null}
            - {pattern: "query/kernel$", orthogonal: {factor: 1e-2, mode: columns}}
            - {pattern: "kernel$", l1: 1e-5, non_neg: true}

        A rule has a `pattern`, and beside it any names that `jaxreg.get` knows, of regularizers and constraints. The
        value of a name is a number, which is its first argument, or a dict of its arguments. With true it has the
        defaults that `get` gives it. Several names in a rule add up. In place of names, a rule may have
        `regularizer`, whose value is null, which leaves the parameters alone, or a name, or a dict of Keras. A strength
        may be text, because PyYAML reads `1e-4` as text.

        `get_config` returns the long form. A config never runs code.

        Before a run, rules can be checked against the shapes in a checkpoint, without reading its arrays:

            saved = ocp.StandardCheckpointer().metadata(path).item_metadata.tree["params"]
            print(rules.explain(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)))

        Args:
          config: a dict or a list. A `ConfigDict` of ml_collections, and any other mapping, counts as a dict.
          custom_objects: your own classes and functions by name. They are found nowhere else.

        Raises:
          TypeError, ValueError: a name is unknown, or its arguments do not fit. The message names the place, such as
            `rules[2].l2`.

        >>> config = [{"pattern": "head/", "regularizer": None}, {"pattern": "kernel$", "l1": 1e-5, "l2": 1e-4}]
        >>> jaxreg.Rules.from_config(config)
        Rules(('head/', None), ('kernel$', L1(l1=1e-05) + L2(l2=0.0001)))
        >>> jaxreg.Rules.from_config({"rules": [{"pattern": "bias$", "max_norm": True}], "strict": False})
        Rules(('bias$', MaxNorm(max_value=2.0)), strict=False)
        """
        config = plain(config)
        if isinstance(config, list):
            config = {"rules": config}
        keys = set(config) if isinstance(config, dict) else set()
        if keys - {"strict"} not in ({"pairs"}, {"rules"}):
            got = sorted(map(str, keys)) if isinstance(config, dict) else describe(config)
            raise ValueError(
                f"`config` must be a dict with the keys 'pairs' and 'strict', got {got}; in the short form it is a "
                "list of rules, or a dict with the keys 'rules' and 'strict'"
            )
        strict = config.get("strict", True)
        if "rules" in config:
            return cls(*pairs_from(config["rules"], custom_objects), strict=strict)
        if not isinstance(config["pairs"], list):
            raise TypeError(f"`pairs` in a config must be a list, got {describe(config['pairs'])}")
        return cls(*from_dict(config["pairs"], custom_objects), strict=strict)

    def __repr__(self) -> str:
        pairs = ", ".join(f"({repr(p) if isinstance(p, str) else brief(p)}, {r!r})" for p, r in self._pairs())
        specs = "" if self.specs is None else f".with_specs({dict(self.specs)})"
        return f"Rules({pairs}{'' if self.strict else ', strict=False'}){specs}"

    def _pairs(self) -> list[tuple[Pattern, Term | None]]:
        return list(zip(self.patterns, self.regularizers, strict=True))

    def label(self, index: int) -> str:
        """Returns the name of a rule in errors."""
        return f"rule {index} ({name_of(self.patterns[index])}, {_kind(self.regularizers[index])})"

    def _met(self, tree: Any, memory: Any = ()) -> list[Met]:
        leaves = leaves_with_paths(tree)
        if self.strict:
            check_no_optimizer_state(tree)
        return self.met_leaves(leaves, memory=memory, others=other_names(tree, [path for path, _ in leaves]))

    def met_leaves(
        self,
        leaves: list[tuple[str, Any]],
        *,
        strict: bool = True,
        only: Collection[int] | None = None,
        memory: Any = (),
        others: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> list[Met]:
        """Returns what the rules say of leaves with their paths, for the leaves that are parameters or masked.

        `strict` may hold for some rules `only`.
        """
        labels = [self.label(rule) for rule in range(len(self.patterns))]
        excluded = [rule for rule, regularizer in enumerate(self.regularizers) if regularizer is None]
        strict = self.strict and strict
        found = []
        place = 0
        matched = match(leaves, self.patterns, self.label, strict=strict, only=only, excluded=excluded, others=others)
        for m in matched:
            rule = m.patterns[0] if m.patterns else None
            regularizer = None if rule is None or is_masked(m.leaf) else self.regularizers[rule]
            name = "" if rule is None else labels[rule]
            names = tuple(others.get(m.path, ()))
            met = Met(m.path, m.leaf, m.patterns, regularizer, name, place, names, self._spec(m.path))
            if regularizer is not None and self.specs is not None and met.spec is None and varying(m.leaf):
                with met.located():
                    known = [path for path, _ in self.specs]
                    raise ValueError(f"`specs` must have a spec for each shard with a penalty, got those of {known}")
            found.append(met)
            place += regularizer is not None
        if is_nothing(memory) and not is_masked(memory):
            return found
        if not self.has_memory:
            raise ValueError(f"`memory` must be `()`, because no rule keeps anything, got {describe(memory)}")
        return remembered(found, memory)


register(Rules)


def _to_state_dict(rules: Rules) -> dict[str, Any]:
    """Returns the strengths by pattern, so that a checkpoint is restored by pattern and not by place."""
    return {
        name: flax.serialization.to_state_dict(regularizer)
        for name, regularizer in zip(_state_names(rules), rules.regularizers, strict=True)
    }


def _from_state_dict(rules: Rules, state: dict[str, Any]) -> Rules:
    names = _state_names(rules)
    if set(state) != set(names):
        raise ValueError(f"the saved state of Rules must hold the patterns {sorted(names)}, got {sorted(state)}")
    restored = [
        flax.serialization.from_state_dict(regularizer, state[name], name=name)
        for name, regularizer in zip(names, rules.regularizers, strict=True)
    ]
    return rules._with(restored)


def _state_names(rules: Rules) -> list[str]:
    """Returns a name for each rule: its pattern, with its number among equal ones."""
    names = [name_of(pattern) for pattern in rules.patterns]
    return [f"{name} ({names[:i].count(name)})" if name in names[:i] else name for i, name in enumerate(names)]


flax.serialization.register_serialization_state(Rules, _to_state_dict, _from_state_dict, override=True)


def _row(met: Met, key: jax.Array | None) -> Row:
    if is_masked(met.leaf):
        return Row(met.path, "masked", 0, met.patterns, None)
    if not is_inexact_array(met.leaf):
        return Row(met.path, f"{describe(met.leaf)}, not an array", 1, (), None)
    cost, distance, seen = None, None, ""
    if met.regularizer is not None:
        seen = met.seen()
        is_known = not met.regularizer.has_schedule and not (met.has_memory and is_nothing(met.memory))
        if is_known and isinstance(met.leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
            met.check()
        elif is_known:
            value = met.penalty(key)
            cost = None if isinstance(value, jax.core.Tracer) else float(value)
            if met.has_constraint and cost is not None:
                distance = float(met.distance())
    size = int(np.prod(met.leaf.shape))
    return Row(met.path, describe(met.leaf), size, met.patterns, cost, seen, met.names, distance)


def _kind(regularizer: Term | None) -> str:
    """Returns how tables and errors call a regularizer, with its constraints named as such."""
    if regularizer is None:
        return "left alone"
    terms = regularizer.terms if isinstance(regularizer, Sum) else (regularizer,)
    if regularizer._is_penalty():
        return repr(regularizer)
    return " + ".join(repr(term) if term._is_penalty() else f"constraint {term!r}" for term in terms)
