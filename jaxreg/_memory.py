"""Memory in trees: what regularizers keep for each parameter, made, found by path, and renewed."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreg._evaluate import is_nothing
from jaxreg._met import Met
from jaxreg._paths import is_masked, leaves_with_paths, map_parts, replace_leaves, without_modules

Leaves = list[tuple[str, Any]]


def begun(found: list[Met], trees: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the memory that is made for each parameter, by path, from further trees that are taken by name."""
    entries = {name: dict(leaves_with_paths(tree)) for name, tree in trees.items()}
    made = {}
    for m in found:
        if m.has_memory:
            with m.located():
                if missing := [name for name, needed in m.extras().items() if needed and name not in trees]:
                    raise TypeError(f"`{missing[0]}` must be given: rules.init(tree, {missing[0]}=...)")
                extras = {name: _entry(entries[name], m.path, name=name) for name in m.extras() if name in trees}
            made[m.path] = m.begun(extras)
    return made


def remembered(found: list[Met], memory: Any) -> list[Met]:
    """Returns what rules met, each with its memory, which is found by path in a tree of any wrapping."""
    keeping = {m.path for m in found if m.has_memory}
    parts: dict[str, Any] = {}
    map_parts(lambda path, part: parts.setdefault(path, part), without_modules(memory), keeping)
    for m in found:
        if m.has_memory and is_nothing(parts.get(m.path)):
            with m.located():
                known = {path: leaf for path, leaf in leaves_with_paths(memory) if not is_masked(leaf)}
                _entry(known, m.path, name="memory")
    return [m._replace(memory=parts[m.path]) if m.has_memory else m for m in found]


def renewed(found: list[Met], memory: Any) -> Any:
    """Returns the memory for the next step, in the structure that it has."""
    new = {m.path: m.renewed() for m in found if m.has_memory}
    return map_parts(lambda path, _: new[path], memory, new)


def in_tree(tree: Any, leaves: Leaves, memories: Mapping[str, Any]) -> Any:
    """Returns copies of memories in the structure of a tree, with a `MaskedNode` where there is none.

    A box has names of mesh axes, so it stays around arrays of the shape of its parameter, and around nothing else.
    """
    made, unboxed = {}, set()
    for path, leaf in leaves:
        made[path] = jax.tree.map(jnp.array, memories[path]) if path in memories else optax.MaskedNode()
        inside = jax.tree.leaves(made[path])
        if not inside or any(jnp.shape(part) != jnp.shape(leaf) for part in inside):
            unboxed.add(path)
    return replace_leaves(without_modules(tree), made, unboxed)


def _entry(entries: Mapping[str, Any], path: str, *, name: str) -> Any:
    """Returns the entry of a tree for a parameter, or raises an error with the nearest paths."""
    if path in entries:
        return entries[path]
    near = difflib.get_close_matches(path, list(entries), n=3, cutoff=0.0)
    raise ValueError(f"`{name}` has no entry for it; the nearest paths are {near}")
