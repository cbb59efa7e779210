"""Weights that are exactly zero, and groups of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxreg._checks import describe, is_float_array
from jaxreg._matrix import Axes, checked_axes, positive_axes, within_groups
from jaxreg._names import public
from jaxreg._paths import check_no_optimizer_state, leaves_with_paths, replace_leaves
from jaxreg._shards import split_of
from jaxreg._tables import Tables, add_row, table


@public
def sparsity(tree: Any, *, group_axis: Axes | None = None, batch_axis: Axes = ()) -> dict[str, jax.Array]:
    """Returns the share of each parameter that is exactly zero, by path. It counts weights or groups, and is jittable.

    Args:
      tree: any tree of parameters that `jaxreg.Rules` take. Leaves that are not floating-point arrays have no share.
      group_axis: None counts the weights that are zero. An axis, or several, whose indices count groups as in
        `jaxreg.GroupLasso`, counts the groups in which all weights are zero. The scale of a normalization has a channel
        for each weight. Other vectors and scalars have no groups.
      batch_axis: further axes that count groups, such as that of layers stacked by `nn.scan`.

    Returns:
      A dict from paths to scalars in float32. An empty array has the share 0.

    Raises:
      TypeError, ValueError: an axis does not fit a parameter of rank >= 2; the message has its path.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> {path: float(share) for path, share in jaxreg.diagnostics.sparsity(params).items()}
    {'bias': 0.0, 'kernel': 0.75}
    >>> {path: float(share) for path, share in jaxreg.diagnostics.sparsity(params, group_axis=-1).items()}
    {'kernel': 0.5}
    """
    checked_axes(batch_axis, name="batch_axis")
    if group_axis is None:
        return {path: _share(leaf == 0) for path, leaf in _parameters(tree)}
    return {path: _share(dead) for path, dead in _dead(tree, group_axis, batch_axis).items()}


@public
def dead_units(tree: Any, *, group_axis: Axes = -1, batch_axis: Axes = ()) -> Any:
    """Returns a tree like `tree` of bool arrays, which are true for groups whose weights are all exactly zero.

    By default a group is a unit of a Dense kernel `(in, out)`, or a filter of a convolution. Without weights, its
    output is its bias for every input. The same holds for a channel whose normalization has the scale 0: a vector
    named `scale`, `gamma` or `weight`, as linen, NNX, Haiku, Keras and Equinox name them. The function is jittable.

    Args:
      tree: a tree of parameters. For an `nnx.Module`, give `nnx.state(model, nnx.Param)`.
      group_axis: the axis or axes whose indices count groups, as in `jaxreg.GroupLasso`.
      batch_axis: further axes that count groups, such as that of layers stacked by `nn.scan`. All arrays of the tree
        are taken as stacked: of rank 2, a bias has no groups then, and a scale has its channels along the other axis.

    Returns:
      The tree with a bool array for each parameter that has groups, and None for other leaves. The array has the sizes
      of `group_axis` and `batch_axis`, in their order in the parameter.

    Raises:
      TypeError, ValueError: an axis does not fit a parameter of rank >= 2; the message has its path.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> jaxreg.diagnostics.dead_units(params)
    {'bias': None, 'kernel': Array([ True, False], dtype=bool)}
    """
    dead = _dead(tree, group_axis, batch_axis)
    return replace_leaves(tree, {path: dead.get(path) for path, _ in leaves_with_paths(tree)})


class _Sparsity(Tables):
    """The table that `sparsity_table` returns."""

    def __init__(self, tree: Any, group_axis: Axes, batch_axis: Axes):
        self._zeros = {path: (describe(leaf), np.asarray(leaf == 0)) for path, leaf in _parameters(tree)}
        self._dead = {path: np.asarray(dead) for path, dead in _dead(tree, group_axis, batch_axis).items()}

    def _tables(self) -> tuple[Table, ...]:
        numbers = ("weights", "zero", "share", "groups", "dead", "share of groups")
        made = table("path", "array", *numbers, "which are dead", right=numbers)
        for path, (array, zeros) in self._zeros.items():
            dead = self._dead.get(path)
            groups = ("", "", "", "") if dead is None else (*_counts(dead), _places(dead))
            add_row(made, path, array, *_counts(zeros), *groups)
        made.add_section()
        flat = [np.concatenate([a.ravel() for a in arrays] or [np.zeros(0, bool)]) for arrays in self._columns()]
        add_row(made, "all", "", *(cell for column in flat for cell in _counts(column)), "")
        return (made,)

    def _columns(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [zeros for _, zeros in self._zeros.values()], list(self._dead.values())


@public
def sparsity_table(tree: Any, *, group_axis: Axes = -1, batch_axis: Axes = ()) -> Tables:
    """Returns a table of the weights and groups of each parameter that are exactly zero, and of which groups are dead.

    Print it, or show it in a notebook. `rich.print` folds it to the width of a terminal.

    Arguments and errors are those of `sparsity` and `dead_units`. The arrays must have values.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> print(jaxreg.diagnostics.sparsity_table(params))
    path     array          weights   zero   share   groups   dead   share of groups   which are dead
    ─────────────────────────────────────────────────────────────────────────────────────────────────
    bias     float32[2]           2      0    0.0%
    kernel   float32[2,2]         4      3   75.0%        2      1             50.0%   0
    <BLANKLINE>
    all                           6      3   50.0%        2      1             50.0%
    """
    return _Sparsity(tree, group_axis, batch_axis)


def _parameters(tree: Any) -> list[tuple[str, Any]]:
    check_no_optimizer_state(tree)
    found = [(path, leaf) for path, leaf in leaves_with_paths(tree) if is_float_array(leaf)]
    for path, leaf in found:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"`tree` must hold values, got the shape {describe(leaf)} at `{path}`")
        try:
            split_of(leaf)  # raises an error for a shard, whose share is not that of the whole
        except ValueError as error:
            raise ValueError(f"at `{path}`: {error}") from error
    return found


# The last names of vectors by which a normalization scales its channels.
_SCALES = ("scale", "gamma", "weight")


def _dead(tree: Any, group_axis: Axes, batch_axis: Axes) -> dict[str, jax.Array]:
    found = {}
    batch = checked_axes(batch_axis, name="batch_axis")
    stacked = 1 if isinstance(batch, int) else len(batch)
    for path, leaf in _parameters(tree):
        rank = leaf.ndim - stacked
        is_scale = rank == 1 and path.rsplit("/", 1)[-1] in _SCALES
        if is_scale or rank > 1:
            try:
                positive_axes(batch_axis, leaf.ndim, name="batch_axis")
                if is_scale:
                    found[path] = leaf == 0
                    continue
                over, _ = within_groups(leaf, group_axis, batch_axis, False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"at `{path}`: {error}") from error
            found[path] = jnp.all(leaf == 0, axis=over.axes)
    return found


def _share(zero: jax.Array) -> jax.Array:
    return jnp.mean(zero.astype(jnp.float32)) if zero.size else jnp.zeros((), jnp.float32)


def _counts(zero: np.ndarray) -> tuple[str, str, str]:
    share = f"{zero.mean():.1%}" if zero.size else "-"
    return f"{zero.size:,}", f"{int(zero.sum()):,}", share


def _places(dead: np.ndarray, most: int = 10) -> str:
    """Returns the indices of the dead groups, with ranges for those that follow each other."""
    if dead.ndim > 1:
        places = [str(tuple(map(int, place))) for place in np.argwhere(dead)]
    else:
        indices = np.flatnonzero(dead)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if indices.size else []
        places = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    rest = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + rest
