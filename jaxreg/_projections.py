"""Projections on sets: the nearest array of a set, and the array itself, to the bit, where it lies in the set."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import as_real, describe, option
from jaxreg._matrix import Axes, View, positive_axes, within_groups
from jaxreg._numerics import (
    Over,
    as_wide,
    in_dtype_of,
    largest,
    magnitude,
    norms,
    spacing_ratio,
    sum_of,
    ulps,
    zero_where,
)
from jaxreg._selection import count_along, share_of, smallest
from jaxreg._shards import Names, all_parts, own_part_along, placement, split_of
from jaxreg._singular import ProjectSingularValues
from jaxreg._spread import map_matrices
from jaxreg.prox._norms import cut_level


def box(x: ArrayLike, *, lower: ArrayLike, upper: ArrayLike) -> jax.Array:
    """Returns max(lower, min(x, upper)) for each weight."""
    array = jnp.asarray(x)
    wide = as_wide(array)
    low, high = (_bound(value, array, name=name) for value, name in ((lower, "lower"), (upper, "upper")))
    # A weight that is not finite has no nearest one that would tell of it.
    moved = jnp.where(jnp.isfinite(wide), jnp.clip(wide, low, high), wide * 0).astype(array.dtype)
    return jnp.where((wide >= low) & (wide <= high) & jnp.isfinite(wide), array, moved)


def _bound(value: ArrayLike, x: jax.Array, *, name: str) -> jax.Array:
    """Returns a bound of weights, as the dtype of the weights has it, in the dtype that is computed in."""
    value = as_real(value, name=name)
    if value.ndim:
        raise ValueError(f"`{name}` must be a scalar, got {describe(value)}; map over several with `jax.vmap`")
    return as_wide(value.astype(x.dtype))


def norm_between(
    x: ArrayLike, low: Any, high: Any, *, group_axis: Axes, batch_axis: Axes, rate: ArrayLike | None = None
) -> jax.Array:
    """Returns the groups of `x` with their norms brought into [low, high], or by a share `rate` of the way there.

    A group of zeros stays as it is, because it has no direction. `low` may be None for 0, and both may be arrays with a
    number for each group.
    """
    wide = as_wide(x)
    over, _ = within_groups(wide, group_axis, batch_axis, False)
    dtype = jnp.asarray(x).dtype
    factor, rest = norms(wide, over)
    norm = factor * rest
    wanted, is_inside = jnp.minimum(norm, high), norm <= high + ulps(4, high, dtype)
    if low is not None:
        wanted, is_inside = jnp.maximum(wanted, low), is_inside & (norm >= low - ulps(4, low, dtype))
    is_zero = rest == 0
    moved = wide / factor * (wanted / jnp.where(is_zero, jnp.ones_like(rest), rest))
    if rate is not None:
        share = option(rate, wide, name="rate")
        moved = share * moved + (1 - share) * wide
    return in_dtype_of(x, jnp.where(is_inside | is_zero, wide, moved))


def norm_bound(x: ArrayLike, value: ArrayLike, *, name: str, above: float | None = None) -> jax.Array:
    """Returns a bound of norms as a scalar in the dtype that `x` is computed in."""
    return option(value, as_wide(x), name=name, above=above)


def kept_norms(x: ArrayLike, memory: Any, *, group_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns the norms that `group_norms` made of the array at the start, which must fit to the groups of `x`."""
    wide = as_wide(x)
    axes = within_groups(wide, group_axis, batch_axis, False)[0].axes
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(wide.shape))
    if not hasattr(memory, "dtype") or memory.shape != shape:
        raise ValueError(f"`memory` must be the norms from `init`, of shape {shape}, got {describe(memory)}")
    return memory.astype(wide.dtype)


def group_norms(x: ArrayLike, *, group_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns the norms of the groups of `x`, with size 1 along the axes within a group."""
    wide = as_wide(x)
    factor, rest = norms(wide, within_groups(wide, group_axis, batch_axis, False)[0])
    return factor * rest


def l1_ball(x: ArrayLike, *, radius: ArrayLike, group_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns the nearest groups with Σ|x| ≤ radius: all weights moved towards 0 by one number, up to 0."""
    wide = as_wide(x)
    over, _ = within_groups(wide, group_axis, batch_axis, False)
    radius = option(radius, wide, name="radius")
    is_inside = sum_of(jnp.abs(wide), over) <= radius + _rounding(wide, radius, over, jnp.asarray(x).dtype)
    lowered = _lowered(magnitude(wide), radius, over)
    moved = jnp.where(lowered > 0, jnp.sign(wide) * lowered, 0 * lowered)  # no zero with a sign
    return in_dtype_of(x, jnp.where(is_inside, wide, moved))


def simplex(x: ArrayLike, *, radius: ArrayLike, group_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns the nearest groups with weights >= 0 and Σx = radius: (x − θ)₊ for one θ in a group."""
    wide = as_wide(x)
    over, _ = within_groups(wide, group_axis, batch_axis, False)
    radius = option(radius, wide, name="radius")
    tolerance = _rounding(wide, radius, over, jnp.asarray(x).dtype)
    least = -largest(-wide, over, least=-np.inf)
    is_inside = (least >= 0) & (jnp.abs(sum_of(wide, over) - radius) <= tolerance)
    return in_dtype_of(x, jnp.where(is_inside, wide, _lowered(wide, radius, over)))


def _lowered(x: jax.Array, radius: jax.Array, over: Over) -> jax.Array:
    """Returns (x − θ)₊ for the number θ in each group that makes the sum of the group the radius."""
    if not x.size:
        return x
    # No sum below overflows where the radius is almost the largest number.
    unit = jnp.where(jax.lax.stop_gradient(radius) > np.finfo(x.dtype).max / 16, 1 / 16, jnp.ones_like(radius))
    x, radius, count = x * unit, radius * unit, count_along(x, over.axes)
    # θ is at least the largest weight minus the radius, and at least the mean minus the share of the radius. Weights
    # are counted from a little below the larger of these, which is near enough to them to round nothing away.
    top, mean = (jax.lax.stop_gradient(v) for v in (largest(x, over, least=-np.inf), sum_of(x / count, over)))
    share = jax.lax.stop_gradient(radius / count)
    few = top - 2 * radius >= mean - 2 * share
    base, margin = jnp.where(few, top, mean), jnp.where(few, jax.lax.stop_gradient(2 * radius), 2 * share)
    near = jnp.maximum(x - base + margin, 0) + 0 * x  # so that an infinity shows
    level = cut_level(near, radius, over)
    lowered = jnp.where(near > level, near - level, 0 * (near + level))
    total = jax.lax.stop_gradient(sum_of(lowered, over))
    scale = jnp.where(total > 0, jax.lax.stop_gradient(radius) / jnp.where(total > 0, total, 1.0), 1.0)
    return lowered * scale / unit


def _rounding(x: jax.Array, bound: jax.Array, over: Over, dtype: Any) -> jax.Array:
    """Returns by how much the sum of a group may miss its bound: 4√k units in the last place, for k weights."""
    return ulps(4 * math.sqrt(max(count_along(x, over.axes), 1)), bound, dtype)


def _values_cut(s: jax.Array, bound: jax.Array) -> jax.Array:
    return jnp.minimum(s, bound)


def _values_at_one(s: jax.Array, unused: jax.Array) -> jax.Array:
    return jnp.ones_like(s) + 0 * s  # a NaN shows


def _values_kept(s: jax.Array, rank: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(len(s), dtype=s.dtype) < rank, s, s * 0)


def _by_bound(s: jax.Array, bound: jax.Array) -> jax.Array:
    return bound


def _by_one(s: jax.Array, unused: jax.Array) -> jax.Array:
    return jnp.ones((), s.dtype)


def _by_largest(s: jax.Array, unused: jax.Array) -> jax.Array:
    return s[0]


def spectral_norm(x: ArrayLike, *, max_value: ArrayLike, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns matrices whose singular values are cut down to at most `max_value`."""
    bound = option(max_value, as_wide(x), name="max_value")
    return _with_values(x, _values_cut, _by_bound, bound, out_axis, batch_axis)


def orthonormal(x: ArrayLike, *, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns UVᵀ of matrices UΣVᵀ, whose singular values are all 1."""
    return _with_values(x, _values_at_one, _by_one, jnp.ones((), as_wide(x).dtype), out_axis, batch_axis)


def max_rank(x: ArrayLike, *, rank: int, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns matrices with their `rank` largest singular values alone."""
    number = jnp.asarray(rank, as_wide(x).dtype)
    return _with_values(x, _values_kept, _by_largest, number, out_axis, batch_axis)


def _with_values(x: ArrayLike, g: Any, bound: Any, parameter: jax.Array, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    wide = as_wide(x)
    coarser = spacing_ratio(jnp.asarray(x).dtype, wide.dtype)
    view = View(out_axis=out_axis, batch_axis=batch_axis)
    return in_dtype_of(x, map_matrices(ProjectSingularValues(g, bound, coarser), wide, view, parameter))


def sparse(x: ArrayLike, *, fraction: Any, batch_axis: Axes) -> jax.Array:
    """Returns `x` with 0 for its round(fraction · n) smallest weights."""
    wide = as_wide(x)
    batch = positive_axes(batch_axis, wide.ndim, name="batch_axis")
    axes = tuple(axis for axis in range(wide.ndim) if axis not in batch)
    over = Over(axes, split_of(wide).of(axes))
    wanted = share_of(fraction, count_along(wide, axes))
    return in_dtype_of(x, zero_where(smallest(jnp.abs(wide), wanted, over), wide))


def group_sparse(x: ArrayLike, *, fraction: Any, group_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns `x` with 0 for the round(fraction · groups) groups that have the smallest norms."""
    wide = as_wide(x)
    within, _ = within_groups(wide, group_axis, batch_axis, False)
    batch = positive_axes(batch_axis, wide.ndim, name="batch_axis")
    groups = tuple(axis for axis in range(wide.ndim) if axis not in batch + within.axes)
    over = Over(groups, split_of(wide).of(groups))
    wanted = share_of(fraction, count_along(wide, groups))
    factor, rest = norms(wide, within)
    return in_dtype_of(x, zero_where(smallest(factor * rest, wanted, over), wide))


def n_of_m(x: ArrayLike, *, n: int, m: int, axis: int) -> jax.Array:
    """Returns `x` with 0 for all but the n largest in each m neighbors along an axis. The first of equal ones stay."""
    wide = as_wide(x)
    (axis,) = positive_axes(axis, wide.ndim, name="axis")
    split = split_of(wide)
    names = split.dims[axis]
    if count_along(wide, (axis,)) % m:
        raise ValueError(
            f"`axis` must have a size that {m} divides, got {count_along(wide, (axis,))} along axis {axis} of "
            f"{describe(wide)}"
        )
    place = placement(wide)
    if place is None or place.split is None or not place.split.dims[axis]:
        return in_dtype_of(x, _n_of_shards(wide, n, m, axis, names))
    # The type of an array on an Explicit mesh allows no reshape of an axis that is divided.
    divided, spec = place.split.dims[axis], jax.typeof(wide).sharding.spec
    of_shards = functools.partial(_n_of_shards, n=n, m=m, axis=axis, names=divided)
    in_shards = jax.shard_map(
        of_shards, mesh=place.mesh, in_specs=spec, out_specs=spec, axis_names=set(place.split.names)
    )
    return in_dtype_of(x, in_shards(wide))


def _n_of_shards(x: jax.Array, n: int, m: int, axis: int, names: Names) -> jax.Array:
    """Returns the blocks of an axis that some mesh axes divide. Where a part has no whole blocks, it is gathered."""
    if names and x.shape[axis] % m:
        return own_part_along(_n_of_m(all_parts(x, axis, names), n, m, axis), axis, names)
    return _n_of_m(x, n, m, axis)


def _n_of_m(x: jax.Array, n: int, m: int, axis: int) -> jax.Array:
    blocks = x.reshape((*x.shape[:axis], x.shape[axis] // m, m, *x.shape[axis + 1 :]))
    size = jax.lax.stop_gradient(jnp.abs(blocks))
    size = jnp.where(jnp.isnan(size), jnp.full_like(size, np.inf), size)  # so that it stays, and shows
    members = [jax.lax.index_in_dim(size, i, axis + 1) for i in range(m)]
    place = jax.lax.broadcasted_iota(jnp.int32, size.shape, axis + 1)
    larger = jnp.zeros(size.shape, jnp.int32)
    for i, member in enumerate(members):
        larger += ((member > size) | ((member == size) & (i < place))).astype(jnp.int32)
    return zero_where(larger >= n, blocks).reshape(x.shape)


def keep_zeros(x: ArrayLike, *, mask: ArrayLike) -> jax.Array:
    """Returns `x` with 0 where the mask is not True."""
    wide = as_wide(x)
    return in_dtype_of(x, zero_where(~jnp.asarray(mask), wide))
