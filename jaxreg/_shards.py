"""Shards: how an array is divided over the axes of a mesh, and what has to be added up over them.

Inside `jax.shard_map` an array is the part that one device has. Its type tells over which mesh axes it varies, and not
which of its dimensions they divide. That is a `Split`, which comes from the user's `PartitionSpec`s, by
`Rules.with_specs`, or from the type that an array has outside.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxreg._checks import describe

Names = tuple[str, ...]  # axes of a mesh
AxisName = str | tuple[str, ...] | None  # as users say those that divide a batch


class Split(NamedTuple):
    """The mesh axes that divide each dimension of an array, in a region where they are manual.

    Attributes:
      dims: for each dimension, the axes that divide it, the slowest first.
      spare: further axes, over which all devices have the same, so that they can share work.
    """

    dims: tuple[Names, ...]
    spare: Names = ()

    @property
    def names(self) -> Names:
        return sum(self.dims, ())

    def of(self, dims: Sequence[int]) -> Names:
        """Returns the axes that divide some dimensions."""
        return sum((self.dims[dim] for dim in dims), ())

    def inside(self, inner: "Split") -> "Split":
        """Returns how an array is divided whose parts are divided again."""
        dims = tuple(a + b for a, b in zip(self.dims, inner.dims, strict=True))
        return Split(dims, self.spare + inner.spare)


# How the array that a penalty is called with is divided, and its shape.
_current: contextvars.ContextVar[tuple[tuple[int, ...], Split] | None] = contextvars.ContextVar("split", default=None)


@contextlib.contextmanager
def divided_as(x: Any, split: Split | None) -> Iterator[None]:
    """Lets penalties and proxes of arrays with the shape of `x` know how they are divided."""
    token = _current.set(None if split is None else (x.shape, split))
    try:
        yield
    finally:
        _current.reset(token)


def known_split(x: Any) -> Split | None:
    """Returns how an array is divided, if `divided_as` has said it of an array of its shape.

    Another array may have that shape. Sums over its axes are taken over those mesh axes alone over which it varies.
    """
    current = _current.get()
    return current[1] if current is not None and current[0] == jnp.shape(x) else None


def split_of(x: Any) -> Split:
    """Returns how an array is divided over manual mesh axes.

    Raises:
      ValueError: it is a shard inside `jax.shard_map`, and no specs were given. Sums over weights need not ask,
        because the sum over shards is the sum over the whole.
    """
    if (known := known_split(x)) is not None:
        return known
    if axes := varying(x):
        raise ValueError(
            f"`x` must be a whole array, got a shard {describe(x)} that varies over the mesh axes {sorted(axes)} in a "
            "`jax.shard_map`. A penalty or a prox that is not a sum over weights would see the shard alone. Give rules "
            "the `in_specs` of the parameters, by `rules.with_specs(specs)`, or gather it by `jax.lax.all_gather`"
        )
    return Split(((),) * jnp.ndim(x))


def split_from(spec: PartitionSpec, x: Any) -> Split | None:
    """Returns how `spec` divides an array inside `jax.shard_map`, or None outside of it.

    Raises:
      ValueError: the array does not vary over the axes of the spec, or over others.
    """
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    if not manual:
        return None
    if len(spec) > jnp.ndim(x):
        raise ValueError(f"`specs` must have no more dimensions than the array, got {spec} for {describe(x)}")
    if not all(varying(lax.axis_index(name)) for name in manual):
        raise ValueError(
            "`specs`, or `axis_name`, need a `jax.shard_map` with check_vma=True. With check_vma=False JAX does not "
            "know which arrays are shards, and rules without specs take arrays as whole"
        )
    dims = _dims(spec, jnp.ndim(x))
    named = set(sum(dims, ()))
    if strange := sorted(named - manual):
        raise ValueError(f"`specs` must name axes of the `jax.shard_map`, {sorted(manual)}, got {strange} in {spec}")
    axes = varying(x)
    if missing := sorted(named - axes):
        raise ValueError(
            f"`specs` must be the `in_specs` of the array, got {spec} for {describe(x)}, which does not vary over "
            f"{missing}"
        )
    if further := sorted(axes - named):
        raise ValueError(
            f"`specs` must be the `in_specs` of the array, got {spec} for {describe(x)}, which varies over {further}"
        )
    return Split(dims, tuple(sorted(manual - named)))


def names_of_batch(axis_name: Any) -> Names:
    """Returns the axes of the `jax.shard_map` around it that divide a batch, as a tuple."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis_name` must be a str or a tuple of str, got {axis_name!r}")
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not names or any(name not in manual for name in names):
        raise ValueError(
            f"`axis_name` must name axes of the `jax.shard_map` around it, {sorted(manual)}, got {axis_name!r}"
        )
    return names


def _dims(spec: Any, rank: int) -> tuple[Names, ...]:
    entries = (*spec, *((None,) * (rank - len(spec))))
    return tuple(() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries)


def varying(x: Any) -> frozenset[str]:
    """Returns the manual mesh axes over which an array varies by its type."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return frozenset()
    aval = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(aval.vma if kind is None else kind.varying)


def as_varying(x: jax.Array, *like: Any) -> jax.Array:
    """Returns `x`, marked as varying over all axes over which `like` do."""
    return varying_over(x, tuple(frozenset().union(*map(varying, like))))


def varying_over(x: jax.Array, names: Names) -> jax.Array:
    """Returns `x`, marked as varying over some axes."""
    missing = frozenset(names) - varying(x)
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def in_order(names: Names) -> Names:
    """Returns manual axes in the order of the mesh, which `lax.ppermute` asks for."""
    return tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name in names)


def size_of(names: Names) -> int:
    """Returns the number of devices along some manual axes."""
    return math.prod(lax.axis_size(name) for name in names)


def total(value: jax.Array, names: Names) -> jax.Array:
    """Returns the sum of a value over those of the axes over which it varies."""
    over = tuple(name for name in names if name in varying(value))
    return lax.psum(value, over) if over else value


def somewhere(condition: jax.Array) -> jax.Array:
    """Returns whether a condition holds on any device, on all of them alike, so that they go the same way."""
    axes = tuple(sorted(varying(condition)))
    return lax.psum(condition.astype(jnp.int32), axes) > 0 if axes else condition


def whole_shape(x: Any) -> tuple[int, ...]:
    """Returns the shape of the whole array of which `x` is a shard, where that is known."""
    split = known_split(x)
    return x.shape if split is None else tuple(n * size_of(d) for n, d in zip(x.shape, split.dims, strict=True))


def all_parts(x: jax.Array, dim: int, names: Names) -> jax.Array:
    """Returns the parts that devices have along a dimension, one after the other, the same on all of them."""
    return lax.all_gather(x, names, axis=dim, tiled=True, to="invarying")


def own_part_along(x: jax.Array, dim: int, names: Names) -> jax.Array:
    """Returns the part of a dimension that is the device's own."""
    size = x.shape[dim] // size_of(names)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(names) * size, size, dim)


def whole(x: jax.Array, split: Split) -> jax.Array:
    """Returns the whole array, which every device then has."""
    for dim, names in enumerate(split.dims):
        x = all_parts(x, dim, names) if names else x
    return x


def own_part(x: jax.Array, split: Split) -> jax.Array:
    """Returns the shard of a whole array that the device has."""
    for dim, names in enumerate(split.dims):
        x = own_part_along(x, dim, names) if names else x
    return x


def gathered(x: jax.Array) -> jax.Array:
    """Returns an array that no axis of an Explicit mesh divides any more, so that any operation is allowed."""
    sharding = jax.typeof(x).sharding
    if not any(entry is not None for entry in sharding.spec):
        return x
    # The mesh is named, because an array outside of compiled functions needs none around it.
    return jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, PartitionSpec(*(None,) * x.ndim)))


_is_undivided: contextvars.ContextVar[bool] = contextvars.ContextVar("undivided", default=False)


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Keeps small arrays that all devices have from being divided."""
    token = _is_undivided.set(True)
    try:
        yield
    finally:
        _is_undivided.reset(token)


class Placement(NamedTuple):
    """A mesh on which an array lies, beyond the axes that are manual already.

    Attributes:
      mesh: the mesh, without its devices.
      names: the axes that divide work.
      size: the number of devices along them.
      split: how they divide the array, or None where the compiler decides, as on an Auto mesh.
    """

    mesh: Any
    names: Names
    size: int
    split: Split | None


def _not_mapped(names: Names, mesh: Any) -> Names:
    """Returns those of some axes of a mesh that do not divide an axis over which `jax.vmap` maps.

    JAX leaves these out of what `jax.shard_map` makes manual by default, and says it nowhere else.
    """
    if not names or mesh.manual_axes:
        return names
    seen: list[Names] = []

    def look() -> jax.Array:
        seen.append(jax.sharding.get_abstract_mesh().manual_axes)
        return jnp.zeros(())

    jax.eval_shape(jax.shard_map(look, mesh=mesh, in_specs=(), out_specs=PartitionSpec()))
    return tuple(name for name in names if name in seen[0])


def placement(x: jax.Array) -> Placement | None:
    """Returns the mesh on which an array lies, by its type or by `jax.set_mesh`, or None for a single device.

    Auto axes beside Explicit or manual ones are left to the compiler.
    """
    sharding = jax.typeof(x).sharding
    mesh = sharding.mesh if jax.sharding.get_abstract_mesh().empty else jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = tuple(name for name in kinds if kinds[name] == AxisType.Explicit)
    split = None
    if explicit:
        dims = _dims(sharding.spec, x.ndim)
        rest = tuple(name for name in explicit if name not in sum(dims, ()))
        split = Split(dims, _not_mapped(rest, mesh))
        explicit = split.names + split.spare
        if not explicit:
            return None
    names = explicit or tuple(kinds)
    if AxisType.Manual in (kinds[name] for name in names):
        return None
    size = math.prod(dict(mesh.shape)[name] for name in names)
    # An axis of one device divides nothing, but on an Explicit mesh it is in the type, which restricts what is allowed.
    is_divided = split is not None and bool(split.names)
    is_shared = size > 1 and not _is_undivided.get()
    return Placement(mesh, names, size, split) if is_divided or is_shared else None
