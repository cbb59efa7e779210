"""The matrix view: a kernel of any rank as a batch of matrices, with the axes named as in `jax.nn.initializers`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxreg._checks import check_bool, check_whole, describe

Axes = int | Sequence[int]
Mode = Literal["rows", "columns"]


def check_mode(mode: Any) -> None:
    if mode not in ("rows", "columns"):
        raise ValueError(f"`mode` must be 'rows' or 'columns', got {mode!r}")


def checked_axes(axes: Any, *, name: str) -> int | tuple[int, ...]:
    """Returns `axes` as an int or a tuple of ints, which a pytree can hold as static data."""

    def is_int(axis: Any) -> bool:
        return isinstance(axis, int | np.integer) and not isinstance(axis, bool)

    if is_int(axes):
        return int(axes)
    if isinstance(axes, tuple | list) and all(map(is_int, axes)):
        return tuple(map(int, axes))
    raise TypeError(f"`{name}` must be an int or a tuple of ints, got {describe(axes)}")


def positive_axes(axes: Axes, rank: int, *, name: str) -> tuple[int, ...]:
    """Returns `axes` counted from the front. An axis out of range, or named twice, is an error."""
    axes = checked_axes(axes, name=name)
    axes = (axes,) if isinstance(axes, int) else axes
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"`{name}` must lie in [-{rank}, {rank}) for rank {rank}, got {axes}")
    positive = tuple(axis % rank for axis in axes)
    if len(set(positive)) < len(positive):
        raise ValueError(f"`{name}` must name each axis once, got {axes} for rank {rank}")
    return positive


def within_groups(
    x: jax.Array, group_axis: Axes, batch_axis: Axes, size_weighted: bool
) -> tuple[tuple[int, ...], float]:
    """Returns the axes that the norm of a group runs over, and the weight of each group.

    Without a `group_axis` the whole array is one group.
    """
    groups = positive_axes(group_axis, x.ndim, name="group_axis")
    batch = positive_axes(batch_axis, x.ndim, name="batch_axis")
    check_disjoint(groups, batch, x, name="group_axis")
    check_bool(size_weighted, name="size_weighted")
    axes = tuple(axis for axis in range(x.ndim) if axis not in groups + batch)
    return axes, math.sqrt(math.prod(x.shape[axis] for axis in axes)) if size_weighted else 1.0


def groups_in(x: jax.Array, group_axis: Axes, batch_axis: Axes) -> str:
    """Returns which groups are seen in an array, such as "64 groups of 9"."""
    axes, _ = within_groups(x, group_axis, batch_axis, False)
    count = math.prod(size for axis, size in enumerate(x.shape) if axis not in axes)
    return f"{count} group{'s' * (count != 1)} of {math.prod(x.shape[axis] for axis in axes)}"


def matrices_in(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> str:
    """Returns which matrices are seen in an array, such as "12 matrices 32×8"."""
    count, rows, columns = _matrix_axes(x, out_axis, batch_axis)[1]
    return f"{count} {'matrix' if count == 1 else 'matrices'} {rows}×{columns}"


def check_disjoint(axes: tuple[int, ...], batch: tuple[int, ...], x: jax.Array, *, name: str) -> None:
    if shared := set(axes) & set(batch):
        raise ValueError(
            f"`{name}` and `batch_axis` must not share an axis, got {axes} and {batch}, which share "
            f"{sorted(shared)} in rank {x.ndim}"
        )


def as_matrices(x: jax.Array, *, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns `x` as (batch, rows, columns). `out_axis` are the columns, and all the other axes are the rows."""
    check_whole(x)
    order, sizes = _matrix_axes(x, out_axis, batch_axis)
    return x.transpose(order).reshape(sizes)


class Matrices(NamedTuple):
    """An array of rank 3 with the places of two of its axes: which counts matrices, and which counts their vectors."""

    array: jax.Array
    batch: int
    vectors: int

    @property
    def axis(self) -> int:
        """The place of the vectors in one of the matrices."""
        return self.vectors - (self.vectors > self.batch)


def as_vectors(x: jax.Array, *, mode: Mode, out_axis: Axes, batch_axis: Axes) -> Matrices:
    """Returns the rows or columns of `x` as vectors along whichever axis they lie.

    Axes that lie side by side become one, which moves no data. Axes of one kind that lie apart are brought together at
    the place of the last of them, so that the last axis stays the last.
    """
    check_whole(x)
    batch, rows, columns = _kinds_of_axes(x, out_axis, batch_axis)
    vectors, components = (rows, columns) if mode == "rows" else (columns, rows)
    kinds = sorted((kind for kind in (batch, vectors, components) if kind), key=max)
    order = [axis for kind in kinds for axis in kind]
    sizes = [math.prod(x.shape[axis] for axis in kind) for kind in kinds]
    if order != sorted(order):
        x = x.transpose(order)
    if not batch:
        return Matrices(x.reshape(1, *sizes), 0, 1 + kinds.index(vectors))
    return Matrices(x.reshape(sizes), kinds.index(batch), kinds.index(vectors))


def on_matrices(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, *, out_axis: Axes, batch_axis: Axes
) -> jax.Array:
    """Applies a function of (batch, rows, columns), which keeps that shape, to `x` and returns the shape of `x`."""
    check_whole(x)
    order, sizes = _matrix_axes(x, out_axis, batch_axis)
    transposed = x.transpose(order)
    return function(transposed.reshape(sizes)).reshape(transposed.shape).transpose(np.argsort(order).tolist())


def _matrix_axes(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of `x` in the order batch, rows, columns, and the sizes of these three."""
    kinds = _kinds_of_axes(x, out_axis, batch_axis)
    return sum(kinds, ()), tuple(math.prod(x.shape[axis] for axis in axes) for axes in kinds)


def _kinds_of_axes(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> tuple[tuple[int, ...], ...]:
    """Returns the axes of `x` that count matrices, those of the rows and those of the columns."""
    if x.ndim < 2:
        raise ValueError(
            f"`x` must have rank >= 2 to be seen as a matrix, got {describe(x)}; "
            "leave vectors such as biases to another rule"
        )
    columns = positive_axes(out_axis, x.ndim, name="out_axis")
    batch = positive_axes(batch_axis, x.ndim, name="batch_axis")
    if not columns:
        raise ValueError("`out_axis` must name at least one axis, got ()")
    check_disjoint(columns, batch, x, name="out_axis")
    rows = tuple(axis for axis in range(x.ndim) if axis not in columns + batch)
    if not rows:
        raise ValueError(
            f"`out_axis` {out_axis} and `batch_axis` {batch_axis} leave no axis of {describe(x)} for the rows"
        )
    return batch, rows, columns
