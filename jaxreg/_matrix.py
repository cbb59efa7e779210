"""The matrix view: a kernel of any rank as a batch of matrices, with the axes named as in `jax.nn.initializers`."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxreg._checks import check_bool, describe
from jaxreg._numerics import Over
from jaxreg._shards import Names, Split, size_of, split_of, whole_shape

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


def as_tuple(axes: Axes) -> tuple[int, ...]:
    """Returns an axis, or several, as a tuple."""
    return (axes,) if isinstance(axes, int) else tuple(axes)


def positive_axes(axes: Axes, rank: int, *, name: str) -> tuple[int, ...]:
    """Returns `axes` counted from the front. An axis out of range, or named twice, is an error."""
    axes = as_tuple(checked_axes(axes, name=name))
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"`{name}` must lie in [-{rank}, {rank}) for rank {rank}, got {axes}")
    positive = tuple(axis % rank for axis in axes)
    if len(set(positive)) < len(positive):
        raise ValueError(f"`{name}` must name each axis once, got {axes} for rank {rank}")
    return positive


def within_groups(x: jax.Array, group_axis: Axes, batch_axis: Axes, size_weighted: bool) -> tuple[Over, float]:
    """Returns the axes that the norm of a group runs over, and the weight of each group.

    Without a `group_axis` the whole array is one group.
    """
    split = split_of(x)
    groups = positive_axes(group_axis, x.ndim, name="group_axis")
    batch = positive_axes(batch_axis, x.ndim, name="batch_axis")
    check_disjoint(groups, batch, x, name="group_axis")
    check_bool(size_weighted, name="size_weighted")
    axes = tuple(axis for axis in range(x.ndim) if axis not in groups + batch)
    size = math.prod(x.shape[axis] for axis in axes) * size_of(split.of(axes))
    return Over(axes, split.of(axes)), math.sqrt(size) if size_weighted else 1.0


def groups_in(x: jax.Array, group_axis: Axes, batch_axis: Axes) -> str:
    """Returns which groups are seen in an array, such as "64 groups of 9"."""
    shape = whole_shape(x)
    axes = within_groups(x, group_axis, batch_axis, False)[0].axes
    count = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
    return f"{count} group{'s' * (count != 1)} of {math.prod(shape[axis] for axis in axes)}"


def matrices_in(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> str:
    """Returns which matrices are seen in an array, such as "12 matrices 32×8"."""
    count, rows, columns = sizes_of_matrices(x, out_axis, batch_axis)
    return f"{count} {'matrix' if count == 1 else 'matrices'} {rows}×{columns}"


def sizes_of_matrices(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> tuple[int, int, int]:
    """Returns the numbers of matrices, rows and columns that are seen in a whole array."""
    shape = whole_shape(x)
    count, rows, columns = (math.prod(shape[axis] for axis in axes) for axes in _kinds_of_axes(x, out_axis, batch_axis))
    return count, rows, columns


def samples_and_features(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> tuple[Over, Over, int, int]:
    """Returns the axes of layer outputs that count samples, those of their features, and the numbers of both."""
    split = split_of(x)
    _, rows, columns = _kinds_of_axes(x, out_axis, batch_axis)
    _, samples, features = sizes_of_matrices(x, out_axis, batch_axis)
    return Over(rows, split.of(rows)), Over(columns, split.of(columns)), samples, features


def check_disjoint(axes: tuple[int, ...], batch: tuple[int, ...], x: jax.Array | np.ndarray, *, name: str) -> None:
    if shared := set(axes) & set(batch):
        raise ValueError(
            f"`{name}` and `batch_axis` must not share an axis, got {axes} and {batch}, which share "
            f"{sorted(shared)} in rank {x.ndim}"
        )


class View(NamedTuple):
    """How a kernel is seen as matrices, and whether their rows or their columns are the vectors."""

    mode: Mode = "rows"
    out_axis: Axes = -1
    batch_axis: Axes = ()


def longer_side(x: jax.Array, out_axis: Axes, batch_axis: Axes) -> View:
    """Returns the view in which the longer side of the matrices counts the vectors, and the smaller one components."""
    _, rows, columns = sizes_of_matrices(x, out_axis, batch_axis)
    return View("rows" if rows >= columns else "columns", out_axis, batch_axis)


class Kind(NamedTuple):
    """The axes of an array that count matrices, vectors or components: their sizes, and what divides each of them."""

    sizes: tuple[int, ...]
    names: tuple[Names, ...]

    @property
    def over(self) -> Names:
        """The mesh axes that divide them."""
        return sum(self.names, ())


class Layout(NamedTuple):
    """How matrices lie in an array of rank 3, and how they are divided over the manual axes of a mesh.

    Attributes:
      batch, vectors: the places of the axes that count the matrices and their vectors.
      kinds: the axes of the kernel that became one axis, for the matrices, vectors and components.
      spare: mesh axes over which all devices have the same.
      sizes: the numbers of matrices, vectors and components of the whole.
    """

    batch: int
    vectors: int
    kinds: tuple[Kind, Kind, Kind]
    spare: Names
    sizes: tuple[int, int, int]

    @property
    def components(self) -> int:
        return 3 - self.batch - self.vectors

    @property
    def axis(self) -> int:
        """The place of the vectors in one of the matrices."""
        return self.vectors - (self.vectors > self.batch)

    @property
    def names(self) -> Names:
        """The mesh axes that divide the array."""
        return sum((kind.over for kind in self.kinds), ())

    @property
    def is_divided(self) -> bool:
        """True if work is divided over devices."""
        return bool(self.names or self.spare)


class Matrices(NamedTuple):
    """An array of rank 3, and how matrices lie in it."""

    array: jax.Array
    layout: Layout


def as_vectors(x: jax.Array, view: View, split: Split | None = None) -> Matrices:
    """Returns the rows or columns of `x` as vectors along whichever axis they lie.

    Axes that lie side by side become one, which moves no data. Axes of one kind that lie apart are brought together at
    the place of the last of them, so that the last axis stays the last. Of a shard, only its own axes are touched: the
    order of vectors and of components does not matter.
    """
    split = split_of(x) if split is None else split
    kinds, places, order = _order(x, view)
    sizes = [math.prod(x.shape[axis] for axis in kind) for kind in kinds]
    batch, vectors, components = (
        Kind(tuple(x.shape[axis] for axis in kind), tuple(split.dims[axis] for axis in kind)) for kind in kinds
    )
    found = (batch, vectors, components)
    if order != sorted(order):
        x = x.transpose(order)
    shape = [1, 1, 1]
    for place, size in zip(places, sizes, strict=True):
        shape[place] = size
    count, n, d = (size * size_of(kind.over) for size, kind in zip(sizes, found, strict=True))
    return Matrices(x.reshape(shape), Layout(places[0], places[1], found, split.spare, (count, n, d)))


def from_vectors(array: jax.Array, x: jax.Array, view: View) -> jax.Array:
    """Returns an array of rank 3, as `as_vectors` makes it of `x`, in the shape of `x`."""
    order = _order(x, view)[2]
    array = array.reshape([x.shape[axis] for axis in order])
    return array if order == sorted(order) else array.transpose(np.argsort(order).tolist())


def _order(x: jax.Array, view: View) -> tuple[tuple[tuple[int, ...], ...], list[int], list[int]]:
    """Returns the axes that count matrices, vectors and components, their places, and all axes in order."""
    batch, rows, columns = _kinds_of_axes(x, view.out_axis, view.batch_axis)
    kinds = (batch, rows, columns) if view.mode == "rows" else (batch, columns, rows)
    # A kernel without a batch is a batch of one in front.
    ranked = sorted(range(3), key=lambda kind: max(kinds[kind], default=-1))
    return kinds, [ranked.index(kind) for kind in range(3)], [axis for kind in ranked for axis in kinds[kind]]


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
