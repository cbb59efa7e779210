"""A parameter with what rules say of it: its penalty and its prox, alone or together with its like."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxreg._alike import divided_alike
from jaxreg._base import in_parts, in_turn
from jaxreg._checks import describe
from jaxreg._evaluate import begun, evaluate, proxed, renewed
from jaxreg._numerics import add_up, as_wide, everything, norms
from jaxreg._shards import divided_as, known_split, placement, size_of, split_from
from jaxreg._term import Term

# Equal kernels are stacked into one exchange while each device has at most so many weights of one.
_TOGETHER = 2**19


class Met(NamedTuple):
    """A parameter, or a `MaskedNode` in its place, with what the rules say of it.

    Attributes:
      path: its path in the tree.
      leaf: the parameter.
      patterns: the indices of the rules that match it, the first of which has it.
      regularizer: that of its rule, or its constraint. None where no rule matches, where its rule has none, or where
        it is masked.
      rule: the name of its rule in errors.
      place: its place among the parameters with a regularizer, from which its random key is made.
      names: its further paths, where modules of NNX share it.
      spec: how it is divided inside `jax.shard_map`, where `Rules.with_specs` says it.
      memory: what its regularizer keeps for it.
    """

    path: str
    leaf: Any
    patterns: tuple[int, ...]
    regularizer: Term | None
    rule: str
    place: int
    names: tuple[str, ...] = ()
    spec: PartitionSpec | None = None
    memory: Any = ()

    @contextlib.contextmanager
    def divided(self) -> Iterator[None]:
        """Lets the regularizer know how a shard is a part of the parameter. Errors name the place in the tree."""
        with self.located(), divided_as(self.leaf, None if self.spec is None else split_from(self.spec, self.leaf)):
            yield

    def seen(self) -> str:
        """Returns what the regularizer sees in the parameter, where that is matrices or groups."""
        assert self.regularizer is not None
        with self.divided():
            return self.regularizer._seen(self.leaf)

    def kind(self) -> Any:
        """Returns what parameters have in common whose penalties can be taken together, or None for one alone."""
        assert self.regularizer is not None
        term = self.regularizer
        if not term._shares_exchanges() or term.needs_key or term.has_memory or isinstance(self.leaf, np.ndarray):
            return None
        with self.divided():
            place, split = placement(self.leaf), known_split(self.leaf)
            count = place.size if place is not None else size_of(split.spare) if split is not None else 1
            is_alone = place is None and (split is None or not split.names + split.spare)
        if is_alone or self.leaf.size > _TOGETHER * count:
            return None
        devices = None if isinstance(self.leaf, jax.core.Tracer) else frozenset(self.leaf.devices())
        return self.patterns[0], jax.typeof(self.leaf), self.spec, devices

    @property
    def has_penalty(self) -> bool:
        """True if it has a penalty, with or without a constraint."""
        return self.regularizer is not None and self.regularizer._has_penalty()

    @property
    def has_constraint(self) -> bool:
        """True if it has a constraint, with or without a penalty."""
        return self.regularizer is not None and not self.regularizer._is_penalty()

    @property
    def has_memory(self) -> bool:
        """True if its regularizer or its constraint keeps something for it."""
        return self.regularizer is not None and self.regularizer.has_memory

    def extras(self) -> Mapping[str, bool]:
        """Returns the names of the further trees that the memory for it may be made from, and whether it must be."""
        return {} if self.regularizer is None else self.regularizer._extras()

    def penalty(self, key: jax.Array | None) -> jax.Array:
        """Returns the penalty of the parameter, in which a constraint counts as 0.

        It has a random key of its own, made from `key`.
        """
        assert self.regularizer is not None
        with self.divided():
            own = None if key is None else jax.random.fold_in(key, self.place)
            if not self.has_constraint:
                return evaluate(self.regularizer, self.leaf, own, self.memory)
            penalties, _ = in_parts(self.regularizer, self.memory)
            return add_up(evaluate(term, self.leaf, own, memory) for term, memory in penalties)

    def projected(self) -> jax.Array:
        """Returns the parameter projected on its constraints, without its penalties."""
        assert self.regularizer is not None
        with self.divided():
            return in_turn([], in_parts(self.regularizer, self.memory)[1], jnp.asarray(self.leaf), None)

    def distance(self) -> jax.Array:
        """Returns the distance of the parameter from the sets of its constraints."""
        moved = as_wide(self.projected()) - as_wide(self.leaf)
        factor, rest = norms(moved, everything(moved))
        return (factor * rest).reshape(())

    def begun(self, extras: dict[str, Any]) -> Any:
        """Returns the memory that its regularizer makes for it."""
        assert self.regularizer is not None
        with self.divided():
            memory = begun(self.regularizer, self.leaf, extras)
            if not jax.tree.leaves(memory):
                raise ValueError(f"`init` of {self.regularizer!r} must return a tree of arrays, got {describe(memory)}")
            return memory

    def renewed(self) -> Any:
        """Returns the memory for the next step."""
        assert self.regularizer is not None
        with self.divided():
            memory = renewed(self.regularizer, self.leaf, self.memory)
            if (got := _types(memory)) != (known := _types(self.memory)):
                raise TypeError(f"`updated` of {self.regularizer!r} must return a memory like {known}, got {got}")
            return memory

    def check(self) -> None:
        """Raises an error where its penalty or its constraint does not take the parameter, or the memory for it."""
        key = jax.random.key(0)  # one is as good as another where there are no values
        jax.eval_shape(lambda leaf: self._replace(leaf=leaf).penalty(key), self.leaf)
        if self.has_constraint:
            jax.eval_shape(lambda leaf: self._replace(leaf=leaf).projected(), self.leaf)

    def prox(self, step: Any, limit: Callable[[jax.Array, jax.Array], jax.Array] | None = None) -> jax.Array:
        """Returns the parameter after a prox step. `step` may be a function of the path and the parameter.

        The prox of penalties goes as far as `limit(new, old)` lets it, and projections go the whole way.
        """
        term = self.regularizer
        assert term is not None
        with self.divided():
            step = step(self.path, self.leaf) if callable(step) else step
            if step is None and self.has_penalty:
                raise TypeError(f"`step` must be given for the prox of {term!r}, and may be left out for constraints")
            if self.has_constraint and limit is not None and term.has_prox:
                result = in_turn(*in_parts(term, self.memory), jnp.asarray(self.leaf), step, limit)
            else:
                result = proxed(term, self.leaf, step, self.memory)
                result = result if limit is None else limit(result, self.leaf)
            if describe(result) != describe(jnp.asarray(self.leaf)):
                raise TypeError(f"the prox of {term!r} must return {describe(self.leaf)}, got {describe(result)}")
            return result

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Adds the place in the tree to an error."""
        where = f"at `{self.path}`, under {self.rule}"
        try:
            yield
        except Exception as error:
            if type(error) in (TypeError, ValueError, NotImplementedError):
                raise type(error)(f"{where}: {error}") from error
            error.add_note(where)
            raise


def _types(memory: Any) -> Any:
    """Returns the structure of a memory with what each array is, as text."""
    return jax.tree.map(describe, memory)


def penalties_of(met: list[Met], key: jax.Array | None) -> list[jax.Array]:
    """Returns the penalties of parameters that have one.

    Kernels on a mesh that are alike under one rule are taken together, so that devices exchange parts of all at once.
    """
    kinds: dict[Any, list[int]] = {}
    for i, m in enumerate(met):
        kinds.setdefault(m.kind() or i, []).append(i)
    found: dict[int, jax.Array] = {}
    for places in kinds.values():
        first = met[places[0]]
        if len(places) == 1:
            found[places[0]] = first.penalty(key)
            continue
        assert first.regularizer is not None
        with first.divided():
            # The gradient of each is divided as it is, and not as that of all together.
            together = jnp.stack([divided_alike(met[i].leaf, met[i].leaf) for i in places])
            one = functools.partial(evaluate, first.regularizer, key=None)
            found |= dict(zip(places, jax.vmap(one)(together), strict=True))
    return [found[i] for i in range(len(met))]
