"""The parts that every transform has: updates beside their parameters, the tracked penalty, and the random key."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_flatten_with_path

from jaxreg._checks import describe, is_float_array, is_inexact_array
from jaxreg._paths import is_box, is_masked, leaves_with_paths
from jaxreg._rules import Rules


class Pairs(NamedTuple):
    """The leaves of updates beside those of the parameters, in one order.

    None and `MaskedNode` are leaves too, and so is everything that is not an array. `chosen` are the indices at which
    both leaves are floating-point arrays, real or complex. A transform changes these updates alone.
    """

    treedef: Any
    updates: list[Any]
    params: list[Any]
    chosen: list[int]

    @classmethod
    def of(cls, updates: optax.Updates, params: optax.Params, *, examples: bool = False) -> "Pairs":
        """Returns the pairs. With `examples`, an update may have one more axis in front."""
        treedef: Any
        located, treedef = tree_flatten_with_path(updates, is_leaf=lambda leaf: leaf is None or is_masked(leaf))
        try:
            param_leaves = treedef.flatten_up_to(params)
        except ValueError as error:
            raise ValueError(f"`updates` and `params` must have the same structure: {error}") from error
        chosen = []
        for i, ((path, update), param) in enumerate(zip(located, param_leaves, strict=True)):
            if update is None or is_masked(update) or getattr(update, "dtype", None) == jax.dtypes.float0:
                continue
            got = f"got {describe(update)} for {type(param).__name__ if is_box(param) else describe(param)}"
            where = f"at `{keystr(path, simple=True, separator='/')}`"
            if is_box(param) and is_inexact_array(update):
                raise ValueError(
                    f"`updates` must be in boxes where `params` are, as `nn.Partitioned` is one, {got} {where}; "
                    "unbox both, or neither"
                )
            if is_inexact_array(param) and not is_inexact_array(update):
                raise TypeError(f"`updates` must be floating-point where `params` are, {got} {where}")
            if is_inexact_array(update) and is_inexact_array(param):
                chosen.append(i)
                if update.shape != param.shape and not (examples and update.shape[1:] == param.shape):
                    raise ValueError(f"`updates` must have the shapes of `params`, {got} {where}")
                if is_float_array(update) != is_float_array(param):
                    raise TypeError(f"`updates` must be complex where `params` are, {got} {where}")
        return cls(treedef, [leaf for _, leaf in located], param_leaves, chosen)

    def paths(self) -> list[str]:
        """Returns the path of each leaf as rules see it, without the attribute of a box."""
        numbered = self.treedef.unflatten(range(len(self.updates)))
        return [path for path, _ in leaves_with_paths(numbered)]

    def is_frozen(self, i: int) -> bool:
        """Returns whether an update is None or masked, so that its parameter stays where it is."""
        return self.updates[i] is None or is_masked(self.updates[i])

    def rebuilt(self, changed: Mapping[int, Any]) -> Any:
        """Returns the tree of updates, with some leaves replaced."""
        return self.treedef.unflatten([changed.get(i, update) for i, update in enumerate(self.updates)])


def check_call(updates: Any, state: Any, params: Any, kind: type) -> None:
    """Checks what `update` was called with, before an optimizer inside sees it."""
    if params is None:
        raise ValueError("`params` must be given to `update`: tx.update(grads, state, params), got None")
    if updates is None:
        raise ValueError("`updates` must be a tree of gradients: tx.update(grads, state, params), got None")
    if not isinstance(state, kind):
        raise TypeError(
            f"`state` must be the {kind.__name__} that `init` returned, as in tx.update(grads, state, params); got "
            f"{type(state).__name__}"
        )
    # An optimizer inside would broadcast a gradient of another shape. One more axis is that of per-example gradients.
    Pairs.of(updates, params, examples=True)


def check_optimizer(inner: Any) -> None:
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        raise TypeError(f"`inner` must be an optax transformation, such as optax.adam(1e-3), got {describe(inner)}")


def first_penalty(track: bool) -> jax.Array | None:
    """Returns the penalty in a state before the first update."""
    return jnp.zeros((), jnp.float32) if track else None


def check_memory(rules: Any, memory: Any) -> None:
    """Raises an error for a memory that no rule would take."""
    if memory is None:
        return
    if not isinstance(rules, Rules):
        raise TypeError(f"`memory` must be None where `rules` is a function, got {type(memory).__name__}")
    if not rules.has_memory:
        raise ValueError("`memory` must be None, because no rule keeps anything")


def first_memory(rules: Any, memory: Any, params: Any) -> Any:
    """Returns the memory of a state: that which was given, as a copy in the structure of the parameters, or its own."""
    if not isinstance(rules, Rules) or not rules.has_memory:
        return ()
    params = _none_as_masked(params)
    return rules.init(params) if memory is None else rules.fitted_memory(params, memory)


def next_memory(rules: Any, memory: Any, params: Any) -> Any:
    """Returns the memory of the next state, renewed from the parameters that this update met."""
    if not isinstance(rules, Rules) or not rules.has_memory:
        return memory
    # A parameter that becomes memory as it is may be donated, and the memory with it.
    known = {id(leaf) for leaf in jax.tree.leaves(params)}
    renewed = rules.updated(_none_as_masked(params), memory)
    return jax.tree.map(lambda part: jnp.array(part) if id(part) in known else part, renewed)


def _none_as_masked(params: Any) -> Any:
    """Returns parameters with a `MaskedNode` for each None, since a rule may be for what stood there."""
    return jax.tree.map(lambda p: optax.MaskedNode() if p is None else p, params, is_leaf=lambda p: p is None)


def rules_at(rules: Any, count: jax.Array) -> Any:
    """Returns rules with the values of their schedules at a count. A function is returned as it is."""
    return rules.at(count) if isinstance(rules, Rules) and rules.has_schedule else rules


def first_key(key: jax.Array | None) -> jax.Array | None:
    """Returns the data of a key for a state. It is a copy, because a state may be donated."""
    return None if key is None else jnp.array(jax.random.key_data(key))


def split_key(key: jax.Array | None, data: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns a key to use, of the kind of `key`, and the data of another one for the next state."""
    if key is None or data is None:
        return None, None
    kept, used = jax.random.split(jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)))
    return used, jax.random.key_data(kept)
