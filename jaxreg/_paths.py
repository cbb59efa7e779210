"""The leaves of any parameter tree, each with its path."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from flax.core.meta import AxisMetadata
from jax.tree_util import keystr, tree_flatten_with_path

_DEEPEST = 500


def _of_nnx(*names: str) -> Any:
    """Returns the classes of NNX with these names, for `isinstance`.

    There are none where nobody has imported NNX, since no tree holds its objects then. To import it for those who do
    not use it would take longer than to import all of jaxreg.
    """
    nnx: Any = sys.modules.get("flax.nnx")
    return tuple(getattr(nnx, name) for name in names if hasattr(nnx, name))  # not yet while it is being imported


def _boxes() -> Any:
    return (AxisMetadata, *_of_nnx("Variable"))


def _states_of_nnx(modules: list[Any]) -> Any:
    """Returns the states of the `nnx.Param`s of all modules, by the index of the module.

    They are taken at once, so that a variable that several of the modules share is in the first alone.
    """
    if not modules:
        return {}
    from flax import nnx

    return nnx.state(modules, nnx.Param)


def is_masked(leaf: Any) -> bool:
    """Returns whether `leaf` is the `MaskedNode` that `optax.masked` or `optax.partition` puts in place of another."""
    return isinstance(leaf, optax.MaskedNode)


def is_box(leaf: Any) -> bool:
    """Returns whether `leaf` is a box around an array, such as `nn.Partitioned` or `nnx.Param`."""
    return isinstance(leaf, _boxes())


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of `tree` with their paths, joined by `/`. A bare array has the path "".

    A box around an array (`nn.Partitioned`, `nnx.Param`) gives the array under the path of the box. For an
    `nnx.Module`, only its `nnx.Param`s are used, and a shared one once. `MaskedNode` is a leaf, and None is not.
    """
    _check_depth(tree)
    found = [(keystr(path, simple=True, separator="/"), leaf) for path, leaf in _walk((), tree)]
    seen = set()
    for path, _ in found:
        if path in seen:
            raise ValueError(f"two leaves of the tree have the path `{path}`; rename a key that contains '/'")
        seen.add(path)
    return found


def other_names(tree: Any, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the further paths of the parameters that several modules of NNX share, by the path that they have."""
    modules = [part for part in jax.tree.leaves(tree, is_leaf=_stops) if isinstance(part, _of_nnx("Module"))]
    # JAX cannot flatten a module that holds itself.
    if not modules or any(_holds_itself(module, ()) for module in modules):
        return {}
    parts = tree_flatten_with_path(tree, is_leaf=lambda part: isinstance(part, _of_nnx("Variable")))[0]
    names: dict[int, list[str]] = {}
    for path, part in parts:
        names.setdefault(id(part), []).append(keystr(path, simple=True, separator="/"))
    known = set(paths)
    return {
        path: others
        for together in names.values()
        for path in known.intersection(together)
        if (others := tuple(name for name in together if name not in known))
    }


def _holds_itself(node: Any, above: tuple[int, ...]) -> bool:
    if isinstance(node, _of_nnx("Module", "List", "Dict")):
        inside = list(vars(node).values())
    elif isinstance(node, Mapping):
        inside = list(node.values())
    else:
        inside = list(node) if isinstance(node, list | tuple) else []
    return id(node) in above or any(_holds_itself(part, (*above, id(node))) for part in inside)


def check_no_optimizer_state(tree: Any) -> None:
    """Raises an error for a tree in which an optimizer keeps its moments, which are no parameters."""
    for path, part in tree_flatten_with_path(tree, is_leaf=lambda p: _is_optimizer_state(p) or _stops(p))[0]:
        if _is_optimizer_state(part):
            where = keystr(path, simple=True, separator="/")
            raise ValueError(
                f"`tree` holds the state of an optimizer, {type(part).__name__}{f' at `{where}`' if where else ''}, "
                "whose moments would count as parameters; give the parameters alone, such as state.params or the model"
            )


def _is_optimizer_state(part: Any) -> bool:
    if isinstance(part, _of_nnx("Optimizer", "OptState", "OptArray", "OptVariable")):
        return True
    of_optax = type(part).__module__.split(".")[0] in ("optax", "jaxreg")
    is_state = of_optax and isinstance(part, tuple) and not isinstance(part, optax.MaskedNode | optax.LookaheadParams)
    return is_state and bool(jax.tree.leaves(part))


def replace_leaves(tree: Any, new: Mapping[str, Any], unboxed: Collection[str] = ()) -> Any:
    """Returns `tree` with the leaves at the paths in `new` replaced, inside their boxes, or in place of these."""

    def replaced(prefix: tuple[Any, ...], tree: Any) -> Any:
        treedef: Any
        parts, treedef = tree_flatten_with_path(tree, is_leaf=_stops)
        return treedef.unflatten(replaced_part(prefix + path, part) for path, part in parts)

    def replaced_part(path: tuple[Any, ...], part: Any) -> Any:
        name = keystr(path, simple=True, separator="/")
        if isinstance(part, _of_nnx("Module")):
            raise TypeError(
                f"`tree` must hold arrays, got an nnx.Module{f' at `{name}`' if name else ''}; "
                "give `nnx.state(model, nnx.Param)`, and put the result into the model by `nnx.update`"
            )
        if isinstance(part, _boxes()) and name not in unboxed:
            return jax.tree.map(lambda content: replaced(path, content), part, is_leaf=lambda inner: inner is not part)
        return new.get(name, part)

    return replaced((), tree)


def without_modules(tree: Any) -> Any:
    """Returns a tree with the state of its `nnx.Param`s in place of each `nnx.Module`."""
    treedef: Any
    parts, treedef = jax.tree.flatten(tree, is_leaf=lambda part: isinstance(part, _of_nnx("Module")))
    modules = [part for part in parts if isinstance(part, _of_nnx("Module"))]
    if not modules:
        return tree
    states = _states_of_nnx(modules)
    parameters = (states.get(index, {}) for index in range(len(modules)))
    return treedef.unflatten([next(parameters) if isinstance(part, _of_nnx("Module")) else part for part in parts])


def map_parts(function: Callable[[str, Any], Any], tree: Any, paths: Collection[str]) -> Any:
    """Returns a tree with `function(path, part)` in place of the part at each path, whatever that holds.

    Paths are those of parameters, so a box is not a part of them.
    """
    above = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"} | {""}

    def mapped(prefix: tuple[Any, ...], node: Any) -> Any:
        name = keystr(prefix, simple=True, separator="/")
        if isinstance(node, _boxes()):
            return jax.tree.map(lambda content: mapped(prefix, content), node, is_leaf=lambda part: part is not node)
        if name in paths:
            return function(name, _without_states(node))
        if name not in above or jax.tree_util.all_leaves([node]):
            return node
        treedef: Any
        parts, treedef = tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
        return treedef.unflatten([mapped(prefix + path, part) for path, part in parts])

    return mapped((), tree)


def _without_states(part: Any) -> Any:
    """Returns what a state of NNX was made of, since it takes the place of a tuple or a dict inside of a variable."""
    if not isinstance(part, _of_nnx("State")):
        return part
    inside = {key: _without_states(value) for key, value in part.items()}
    return tuple(inside.values()) if list(inside) == list(range(len(inside))) else inside


def _check_depth(tree: Any) -> None:
    """Raises an error for a tree in which JAX would reach the limit of recursion, from which it does not recover."""
    level, depth = [tree], 0
    while level:
        if depth > _DEEPEST:
            raise ValueError(f"the tree is nested too deeply: it has more than {_DEEPEST} levels")
        inside: list[Any] = []
        for node in level:
            if isinstance(node, Mapping):
                inside.extend(node.values())
            elif isinstance(node, list | tuple):
                inside.extend(node)
        level, depth = inside, depth + 1


def _stops(part: Any) -> bool:
    return isinstance(part, (AxisMetadata, *_of_nnx("Variable", "Module"))) or is_masked(part)


def _walk(prefix: tuple[Any, ...], tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    parts = tree_flatten_with_path(tree, is_leaf=_stops)[0]
    modules = [part for _, part in parts if isinstance(part, _of_nnx("Module"))]
    states = _states_of_nnx(modules)
    parameters = (states.get(index, {}) for index in range(len(modules)))
    for path, part in parts:
        if isinstance(part, _of_nnx("Module")):
            yield from _walk(prefix + path, next(parameters))
        elif isinstance(part, _boxes()):
            # The first key inside a box is its attribute `value`, which is not a part of the path.
            for content in _contents(part):
                yield from _walk(prefix + path, content)
        else:
            yield prefix + path, part


def _contents(box: Any) -> list[Any]:
    return jax.tree.leaves(box, is_leaf=lambda part: part is not box)
