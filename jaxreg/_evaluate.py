"""A term with a parameter: its penalty, its prox and its memory. A term that knows nothing of shards gets the whole."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxreg._checks import describe
from jaxreg._numerics import checked_penalty
from jaxreg._shards import Split, divided_as, known_split, own_part, whole, whole_shape
from jaxreg._term import Term


def evaluate(term: Term, x: jax.Array, key: jax.Array | None = None, memory: Any = ()) -> jax.Array:
    """Returns the penalty of `x`, checked. A term whose `needs_key` is true is called with `key`.

    Where `x` is a shard, and it is known how it is a part of the whole, the penalty is that of the whole.
    """
    call: Callable[..., Any] = term  # with a key or a memory, where it has one
    with _whole_unless_known(term, x) as split:
        given = _given(term, memory, x, split) | ({"key": key} if term.needs_key else {})
        return checked_penalty(call(x if split is None else whole(x, split), **given), of=term)


def proxed(term: Term, x: jax.Array, step: Any, memory: Any = ()) -> jax.Array:
    """Returns the prox of a term, or the projection of a constraint.

    For a shard, it is the shard of what the prox makes of the whole.
    """
    prox: Callable[..., Any] = term.prox
    with _whole_unless_known(term, x) as split:
        given = _given(term, memory, x, split)
        if split is None:
            return prox(x, step, **given)
        step = whole(step, split) if jnp.ndim(step) else step
        return own_part(prox(whole(x, split), step, **given), split)


def begun(term: Term, x: jax.Array, extras: Mapping[str, Any]) -> Any:
    """Returns the memory that a term makes for a parameter, with those of the extra arrays that it takes."""
    init: Callable[..., Any] = term.init
    taken = {name: value for name, value in extras.items() if name in term._extras()}
    with _whole_unless_known(term, x) as split:
        if split is None:
            return init(x, **taken)
        return _as_parts(init(_as_whole(x, x, split), **_as_whole(taken, x, split)), x, split)


def renewed(term: Term, x: jax.Array, memory: Any) -> Any:
    """Returns the memory for the next step."""
    if not term.renews_memory:
        return memory
    with _whole_unless_known(term, x) as split:
        given = _given(term, memory, x, split)["memory"]
        if split is None:
            return term.updated(x, given)
        return _as_parts(term.updated(whole(x, split), given), x, split)


def _given(term: Term, memory: Any, x: jax.Array, split: Split | None) -> dict[str, Any]:
    """Returns the memory as a keyword for a term that has one. It is never differentiated."""
    if not term.has_memory:
        return {}
    if is_nothing(memory):
        raise ValueError(
            f"`memory` must be given for {term!r}, got nothing: take `memory=rules.init(params)`, or for a single "
            "array `memory=regularizer.init(x)`"
        )
    memory = jax.tree.map(lax.stop_gradient, memory)
    return {"memory": memory if split is None else _as_whole(memory, x, split)}


def is_nothing(memory: Any) -> bool:
    """Returns whether a memory is that of nothing: `()`, or a `MaskedNode`, which is an empty tuple too."""
    return memory is None or (isinstance(memory, tuple) and len(memory) == 0)


def in_order(memory: Any, count: int) -> list[Any] | None:
    """Returns the parts of a memory that is a tuple of `count` parts, or None for anything else.

    A state of NNX, and a checkpoint that is read without its structure, have a dict in place of a tuple, and leave out
    what is empty.
    """
    if isinstance(memory, Mapping):
        places = {str(place): part for place, part in memory.items()}
        known = set(places) <= set(map(str, range(count)))
        return [places.get(str(i), ()) for i in range(count)] if known else None
    if isinstance(memory, tuple | list) and len(memory) <= count:
        return [*memory, *((),) * (count - len(memory))]
    return None


def _as_whole(tree: Any, x: jax.Array, split: Split) -> Any:
    """Returns the arrays of a tree, those of the shape of a shard made whole as it is."""
    return jax.tree.map(lambda part: whole(part, split) if jnp.shape(part) == x.shape else part, tree)


def _as_parts(tree: Any, x: jax.Array, split: Split) -> Any:
    with divided_as(x, split):
        shape = whole_shape(x)
    return jax.tree.map(lambda part: own_part(part, split) if jnp.shape(part) == shape else part, tree)


@contextlib.contextmanager
def _whole_unless_known(term: Term, x: Any) -> Iterator[Split | None]:
    """Yields how `x` is divided, if the term has to be given the whole, because nothing is known of it."""
    split = known_split(x)
    if split is None or not split.names or term._takes_shards:
        yield None
    else:
        with divided_as(x, None):
            yield split


def fitting(memory: Any, x: Any, what: str) -> Any:
    """Returns an array of a memory, which must have the shape of the parameter."""
    if not hasattr(memory, "dtype") or memory.shape != jnp.shape(x):
        raise ValueError(f"`memory` must be {what}, of the shape of the array, {describe(x)}, got {describe(memory)}")
    return memory
