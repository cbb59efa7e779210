"""The matrices of a kernel that is divided over a mesh: from where its parts lie to where they are worked on, and back.

A penalty or a prox of matrices is written for the shards in a region where mesh axes are manual. It is reached

- inside the user's `jax.shard_map`, where `Rules.with_specs` says how the kernel is divided,
- by the type of an array on an Explicit mesh,
- on an Auto mesh, where the compiler knows how the kernel is divided: the vectors are then divided over all axes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxreg._alike import divided_alike
from jaxreg._matrix import Kind, Layout, Matrices, View, as_vectors, from_vectors
from jaxreg._numerics import sum_of
from jaxreg._shards import (
    Names,
    Split,
    all_parts,
    divided_as,
    gathered,
    in_order,
    own_part,
    own_part_along,
    placement,
    size_of,
    split_of,
    total,
    whole,
)

Penalty = Callable[..., jax.Array]  # of matrices that may be shards, the same for all devices
Unit = Literal["vectors", "matrices", "parts"]
Step = Callable[[jax.Array], jax.Array]


class Dealt(NamedTuple):
    """Matrices dealt out to devices, so that each has some vectors whole, or some matrices whole.

    Attributes:
      array: the array of rank 3.
      ring: the mesh axes over which vectors of one matrix are divided.
      back: the function that brings a gradient, or a new array, back to where the kernel lies.
    """

    array: jax.Array
    ring: Names
    back: Callable[[jax.Array], jax.Array]


def dealt(x: jax.Array, layout: Layout, unit: Unit) -> Dealt:
    """Returns the vectors, or the matrices, of a divided kernel dealt out whole, by one exchange where that is enough.

    Where devices have the same, they share the work. Vectors are dealt out by matrices where the devices divide their
    number, and else within each matrix. Whole matrices are dealt out where a device has more than one, and a single one
    is gathered. Zeros fill what does not divide.
    """
    steps: list[Step] = []
    if unit == "parts":
        return Dealt(x, (), lambda x: x)
    _, vectors, components = layout.kinds
    ring: Names = vectors.over if unit == "vectors" else ()

    def onto(names: Names) -> int | None:
        count = x.shape[layout.batch]
        if unit == "matrices":
            return layout.batch if count > 1 else None
        return layout.batch if count % size_of(names) == 0 else layout.vectors

    divided = [(layout.components, components.over)]
    if unit == "matrices":
        divided.insert(0, (layout.vectors, vectors.over))
    for axis, names in divided:
        if names:
            target = onto(names)
            x = _gathered(x, axis, names, steps) if target is None else _exchanged(x, axis, target, names, steps)
            ring += names if target == layout.vectors else ()
    if layout.spare and (target := onto(layout.spare)) is not None:
        x = _shared(x, target, layout.spare, steps)
        ring += layout.spare if target == layout.vectors else ()

    def back(x: jax.Array) -> jax.Array:
        for step in reversed(steps):
            x = step(x)
        return x

    return Dealt(x, in_order(ring), back)


def _gathered(x: jax.Array, axis: int, names: Names, steps: list[Step]) -> jax.Array:
    steps.append(lambda x: own_part_along(x, axis, names))
    return all_parts(x, axis, names)


def _exchanged(x: jax.Array, axis: int, target: int, names: Names, steps: list[Step]) -> jax.Array:
    size = x.shape[target]
    steps.append(lambda x: lax.slice_in_dim(lax.all_to_all(x, names, axis, target, tiled=True), 0, size, axis=target))
    return lax.all_to_all(filled(x, target, size_of(names)), names, target, axis, tiled=True)


def _shared(x: jax.Array, target: int, names: Names, steps: list[Step]) -> jax.Array:
    size = x.shape[target]
    steps.append(lambda x: lax.slice_in_dim(all_parts(x, target, names), 0, size, axis=target))
    return own_part_along(filled(x, target, size_of(names)), target, names)


def filled(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Returns `x` followed by zeros along an axis, up to a multiple of a size."""
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


def own_places(kind: Kind) -> jax.Array:
    """Returns the places in the whole of the matrices, or vectors, that a device has, in ascending order."""
    places = jnp.zeros(1, jnp.int32)
    for size, names in zip(kind.sizes, kind.names, strict=True):
        first = lax.axis_index(names) * size if names else 0
        own = (first + jnp.arange(size)).astype(jnp.int32)
        places = (places[:, None] * (size * size_of(names)) + own[None, :]).reshape(-1)
    return places


def own_place_of(kind: Kind, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns where a device has the vectors at some places in the whole, and whether it has them."""
    own, found, stride = jnp.zeros_like(places), jnp.ones_like(places, dtype=bool), 1
    for size, names in zip(reversed(kind.sizes), reversed(kind.names), strict=True):
        here = places % (size * size_of(names)) - (lax.axis_index(names) * size if names else 0)
        found &= (here >= 0) & (here < size)
        own += jnp.clip(here, 0, size - 1) * stride
        places, stride = places // (size * size_of(names)), stride * size
    return own, found


class Job(Protocol):
    """The work of each device with the vectors or matrices that are dealt out to it."""

    @property
    def unit(self) -> Unit:
        """The parts that a device has to have whole."""

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool, *rest: Any) -> tuple[jax.Array, Any]:
        """Returns the part of the value that a device has, and the gradient where it is `graded`, else None."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def value_of_shards(x: jax.Array, layout: Layout, job: Job, *rest: jax.Array) -> jax.Array:
    """Returns the value of a job for a divided kernel, which is the same on all devices.

    The rest are whole arrays that the job takes too. They are not differentiated.
    """
    return _value_and_gradient(x, layout, job, False, rest)[0]


@value_of_shards.defjvp
def _value_of_shards_jvp(
    layout: Layout, job: Job, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    (x, *rest), (change, *_) = primals, tangents
    value, gradient = _value_and_gradient(x, layout, job, True, rest)
    return value, _along(gradient, change, value, layout.names)


def _along(gradient: jax.Array, change: jax.Array, value: jax.Array, names: Names) -> jax.Array:
    """Returns the derivative of a value along a change of the array, of which devices have parts."""
    return total(sum_of(gradient.astype(value.dtype) * change.astype(value.dtype)), names)


def _value_and_gradient(
    x: jax.Array, layout: Layout, job: Job, graded: bool, rest: Sequence[jax.Array]
) -> tuple[jax.Array, Any]:
    found = dealt(x, layout, job.unit)
    with divided_as(x, None):  # what a job adds up may have the shape of a shard, and is none
        value, gradient = job(found.array, layout, found.ring, graded, *rest)
    return total(value, layout.names + layout.spare), found.back(gradient) if graded else None


@dataclasses.dataclass(frozen=True)
class ByJob:
    """The penalty of matrices that is the value of a job, also where one device does all of it."""

    job: Job

    def __call__(self, matrices: Matrices, *rest: jax.Array) -> jax.Array:
        return value_of_shards(*matrices, self.job, *rest)


def penalty_of_matrices(penalty: Penalty, x: jax.Array, view: View, *rest: jax.Array) -> jax.Array:
    """Returns a penalty of the matrices of a kernel, which may be divided over a mesh.

    The penalty must be hashable. It is called with `Matrices` and the rest. Its gradient is divided as the kernel is.
    """
    split = split_of(x)
    if not x.size:
        # Nothing is divided, and collectives take no empty arrays.
        return total(penalty(as_vectors(gathered(x), view, Split(((),) * x.ndim)), *rest), split.names)
    if placement(x) is None:
        return penalty(as_vectors(x, view, split), *rest)
    return _on_mesh(penalty, view, split, x, rest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _on_mesh(penalty: Penalty, view: View, split: Split, x: jax.Array, rest: tuple[jax.Array, ...]) -> jax.Array:
    return _run(penalty, view, split, False, x, rest)[0]


@_on_mesh.defjvp
def _on_mesh_jvp(
    penalty: Penalty, view: View, split: Split, primals: tuple[jax.Array, Any], tangents: tuple[jax.Array, Any]
) -> tuple[jax.Array, jax.Array]:
    (x, rest), (change, _) = primals, tangents
    value, gradient = _run(penalty, view, split, True, x, rest)
    return value, _along(divided_alike(gradient, x), change, value, split.names)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    penalty: Penalty, view: View, split: Split, graded: bool, x: jax.Array, rest: tuple[jax.Array, ...]
) -> tuple[jax.Array, Any]:
    """Returns the value of a penalty of a kernel on a mesh, and its gradient where it is `graded`, else None."""

    def local(matrices: Matrices, *rest: jax.Array) -> tuple[jax.Array, Any]:
        def value(array: jax.Array) -> jax.Array:
            return penalty(matrices._replace(array=array), *rest)

        return jax.value_and_grad(value)(matrices.array) if graded else (value(matrices.array), None)

    return _in_shards(local, view, split, x, rest, with_value=True, with_array=graded)


class OfWhole(Protocol):
    """A penalty of arrays that no device has parts of, which returns its gradient too."""

    def value_and_gradient(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the value and the gradient."""


def penalty_of_whole(penalty: OfWhole, x: jax.Array) -> jax.Array:
    """Returns a penalty of a whole array, which every device gathers and works with. The gradient is divided as `x`."""
    return _of_whole(penalty, split_of(x), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _of_whole(penalty: OfWhole, split: Split, x: jax.Array) -> jax.Array:
    return penalty.value_and_gradient(_whole(x, split))[0]


def _whole(x: jax.Array, split: Split) -> jax.Array:
    return whole(x, split) if split.names else gathered(x)


@_of_whole.defjvp
def _of_whole_jvp(
    penalty: OfWhole, split: Split, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    value, gradient = penalty.value_and_gradient(_whole(x, split))
    if split.names:
        gradient = own_part(gradient, split)
    elif any(entry is not None for entry in jax.typeof(x).sharding.spec):
        gradient = jax.sharding.reshard(gradient, jax.typeof(x).sharding)
    return value, _along(divided_alike(gradient, x), change, value, split.names)


def map_matrices(function: Penalty, x: jax.Array, view: View, *rest: jax.Array) -> jax.Array:
    """Returns what a function makes of the matrices of a kernel, in the shape of `x` and divided as `x` is.

    The function must be hashable. It is called with `Matrices` and the rest, and returns an array like theirs.
    """
    split = split_of(x)
    if not x.size:
        return x
    if placement(x) is None:
        return from_vectors(function(as_vectors(x, view, split), *rest), x, view)
    return divided_alike(_mapped(function, view, split, x, rest), x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _mapped(function: Penalty, view: View, split: Split, x: jax.Array, rest: tuple[jax.Array, ...]) -> jax.Array:
    def local(matrices: Matrices, *rest: jax.Array) -> tuple[None, jax.Array]:
        return None, function(matrices, *rest)

    return _in_shards(local, view, split, x, rest, with_value=False, with_array=True)[1]


def _in_shards(
    local: Callable[..., tuple[Any, Any]],
    view: View,
    split: Split,
    x: jax.Array,
    rest: tuple[jax.Array, ...],
    *,
    with_value: bool,
    with_array: bool,
) -> tuple[Any, Any]:
    """Returns what `local` returns for the matrices of a kernel on a mesh: a value, and an array of their shape.

    The array comes back in the shape of the kernel, and on an Explicit mesh divided as it is. Either may be left out.
    """
    place = placement(x)
    assert place is not None

    def run(shards: Callable[..., tuple[Any, Any]], x: jax.Array, dims: tuple[Names, ...]) -> tuple[Any, Any]:
        spec = PartitionSpec(*(names or None for names in dims))
        return jax.shard_map(
            shards,
            mesh=place.mesh,
            in_specs=(spec, *(PartitionSpec() for _ in rest)),
            out_specs=(PartitionSpec() if with_value else None, spec if with_array else None),
            axis_names=set(place.names),
        )(x, *rest)

    if place.split is not None:
        inner = split.inside(place.split)

        def of_kernel(x: jax.Array, *rest: jax.Array) -> tuple[Any, Any]:
            value, array = local(as_vectors(x, view, inner), *rest)
            return value, from_vectors(array, x, view) if with_array else None

        return run(of_kernel, x, place.split.dims)

    # On an Auto mesh, all its axes divide one axis of the array of rank 3.
    seen, layout = as_vectors(x, view, split)
    axis = layout.batch if layout.sizes[0] % place.size == 0 else layout.vectors
    dims = tuple(place.names if a == axis else () for a in range(3))

    def of_array(x: jax.Array, *rest: jax.Array) -> tuple[Any, Any]:
        batch, vectors, components = (
            Kind((x.shape[a],), (dims[a],)) for a in (layout.batch, layout.vectors, layout.components)
        )
        return local(Matrices(x, layout._replace(kinds=(batch, vectors, components))), *rest)

    value, array = run(of_array, filled(seen, axis, place.size), dims)
    if with_array:
        array = from_vectors(lax.slice_in_dim(array, 0, seen.shape[axis], axis=axis), x, view)
    return value, array
