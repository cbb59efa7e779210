"""Numbers about weights: how near to orthogonal the rows or columns of a kernel are, and what is exactly zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from rich.table import Table

from jaxreg._matrix import Axes, Mode, as_matrices, check_mode, within_groups
from jaxreg._numerics import as_wide, describe, is_float_array, unit_rows
from jaxreg._paths import leaves_with_paths, replace_leaves
from jaxreg._tables import Tables, add_row, table

__all__ = ["cosines", "dead_units", "mutual_coherence", "sparsity", "sparsity_table"]


def cosines(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The cosine of each row (or column) with each other one: UUᵀ with the rows u_i = x_i / max(‖x_i‖, 1e-7).

    The kernel is seen as a matrix as in `jaxreg.penalties.orthogonal`. A zero row has cosine 0 with every row, itself
    included.

    Args:
      x: a real floating-point array of rank >= 2.
      mode: "rows" or "columns", which of the two are compared.
      out_axis: the axis or axes that are the columns.
      batch_axis: the axis or axes that count independent matrices.

    Returns:
      An array (n, n) of at least float32, or (batch, n, n) where `batch_axis` names an axis.

    Raises:
      TypeError, ValueError: as `jaxreg.penalties.orthogonal` does.

    >>> jaxreg.diagnostics.cosines(jnp.array([[3.0, 0.0], [0.0, -2.0]])).round(4)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    check_mode(mode)
    matrices = as_matrices(as_wide(x), out_axis=out_axis, batch_axis=batch_axis)
    units = unit_rows(matrices if mode == "rows" else matrices.swapaxes(-1, -2)).units
    grams = jnp.matmul(units, units.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
    return grams[0] if isinstance(batch_axis, tuple | list) and not batch_axis else grams


def mutual_coherence(x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The largest |cosine| between two distinct rows (or columns): max_{i≠j} |cos(x_i, x_j)|, over all matrices.

    Of n vectors in d dimensions it is at least √((n−d)/(d(n−1))). A single vector has the coherence 0.

    Args, shapes and errors are those of `cosines`. Returns a scalar of at least float32.

    >>> float(jaxreg.diagnostics.mutual_coherence(jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])))
    1.0

    Source: Welch, Lower bounds on the maximum cross correlation of signals, 1974.
    """
    between = cosines(x, mode=mode, out_axis=out_axis, batch_axis=batch_axis)
    own = jnp.broadcast_to(jnp.eye(between.shape[-1], dtype=bool), between.shape)
    return jnp.max(jnp.where(own, 0.0, jnp.abs(between)), initial=0.0)


def sparsity(tree: Any, *, group_axis: Axes | None = None) -> dict[str, jax.Array]:
    """The share of each parameter that is exactly zero, by path: of its weights, or of its groups. Jittable.

    Args:
      tree: any tree of parameters, as `jaxreg.Rules` take it. Leaves that are no floating-point arrays have no share.
      group_axis: None for the share of zero weights. Or the axis or axes whose indices count groups, as in
        `jaxreg.GroupLasso`: the share of groups in which all weights are zero. Vectors and scalars have no groups.

    Returns:
      A dict from paths to scalars in float32. An empty array has the share 0.

    Raises:
      TypeError, ValueError: `group_axis` does not fit a parameter of rank >= 2; the message has its path.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> {path: float(share) for path, share in jaxreg.diagnostics.sparsity(params).items()}
    {'bias': 0.0, 'kernel': 0.75}
    >>> {path: float(share) for path, share in jaxreg.diagnostics.sparsity(params, group_axis=-1).items()}
    {'kernel': 0.5}
    """
    if group_axis is None:
        return {path: _share(leaf == 0) for path, leaf in _parameters(tree)}
    return {path: _share(dead) for path, dead in _dead(tree, group_axis).items()}


def dead_units(tree: Any, *, group_axis: Axes = -1) -> Any:
    """Which groups of weights are all exactly zero: a tree like `tree` of bool arrays over the groups. Jittable.

    By default a group is a unit of a Dense kernel `(in, out)`, or a filter of a convolution: without weights it puts
    out its bias, whatever comes in.

    Args:
      tree: a tree of parameters; of an `nnx.Module`, its `nnx.state(model, nnx.Param)`.
      group_axis: the axis or axes whose indices count groups, as in `jaxreg.GroupLasso`.

    Returns:
      The tree with a bool array of the sizes of `group_axis` for each parameter of rank >= 2, None for other leaves.

    Raises:
      TypeError, ValueError: `group_axis` does not fit a parameter of rank >= 2; the message has its path.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> jaxreg.diagnostics.dead_units(params)
    {'bias': None, 'kernel': Array([ True, False], dtype=bool)}
    """
    dead = _dead(tree, group_axis)
    return replace_leaves(tree, {path: dead.get(path) for path, _ in leaves_with_paths(tree)})


class _Sparsity(Tables):
    """What `sparsity_table` returns."""

    def __init__(self, tree: Any, group_axis: Axes):
        self._zeros = {path: (describe(leaf), np.asarray(leaf == 0)) for path, leaf in _parameters(tree)}
        self._dead = {path: np.asarray(dead) for path, dead in _dead(tree, group_axis).items()}

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


def sparsity_table(tree: Any, *, group_axis: Axes = -1) -> Tables:
    """A table of what is exactly zero: weights and groups of each parameter, and which groups are dead.

    Print it, or show it in a notebook; `rich.print` folds it to the width of a terminal.

    Args and errors are those of `sparsity` and `dead_units`; the arrays must have values.

    >>> params = {"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
    >>> print(jaxreg.diagnostics.sparsity_table(params))
    path     array          weights   zero   share   groups   dead   share of groups   which are dead
    ─────────────────────────────────────────────────────────────────────────────────────────────────
    bias     float32[2]           2      0    0.0%
    kernel   float32[2,2]         4      3   75.0%        2      1             50.0%   0
    <BLANKLINE>
    all                           6      3   50.0%        2      1             50.0%
    """
    return _Sparsity(tree, group_axis)


def _parameters(tree: Any) -> list[tuple[str, Any]]:
    found = [(path, leaf) for path, leaf in leaves_with_paths(tree) if is_float_array(leaf)]
    for path, leaf in found:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"`tree` must hold values, got the shape {describe(leaf)} at `{path}`")
    return found


def _dead(tree: Any, group_axis: Axes) -> dict[str, jax.Array]:
    found = {}
    for path, leaf in _parameters(tree):
        if leaf.ndim > 1:
            try:
                axes, _ = within_groups(leaf, group_axis, (), False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"at `{path}`: {error}") from error
            found[path] = jnp.all(leaf == 0, axis=axes)
    return found


def _share(zero: jax.Array) -> jax.Array:
    return jnp.mean(zero.astype(jnp.float32)) if zero.size else jnp.zeros((), jnp.float32)


def _counts(zero: np.ndarray) -> tuple[str, str, str]:
    share = f"{zero.mean():.1%}" if zero.size else "-"
    return f"{zero.size:,}", f"{int(zero.sum()):,}", share


def _places(dead: np.ndarray, most: int = 10) -> str:
    """The indices of what is dead, those that follow each other as a range."""
    if dead.ndim > 1:
        places = [str(tuple(map(int, place))) for place in np.argwhere(dead)]
    else:
        indices = np.flatnonzero(dead)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if indices.size else []
        places = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    rest = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + rest
