"""The smallest of many sizes: exactly so many, without a sort, also where they are divided over devices."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._checks import as_real, describe
from jaxreg._numerics import Over, as_wide, peak, sum_of
from jaxreg._shards import size_of, somewhere, split_of

# The search ends sooner. This bounds it: each second step halves what is left of 63 bits.
_MOST_STEPS = 130

_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def share_of(fraction: jax.Array | float, count: int) -> jax.Array | int:
    """Returns round(fraction · count), also where the count has more digits than the dtype of a traced fraction."""
    if isinstance(fraction, float | int | np.number):
        return round(float(fraction) * count)
    fraction = as_real(fraction, name="fraction")
    fraction = as_wide(fraction if jnp.issubdtype(fraction.dtype, jnp.floating) else fraction.astype(jnp.float32))
    if fraction.ndim:
        raise ValueError(f"`fraction` must be a scalar, got {describe(fraction)}; map over several with `jax.vmap`")
    fraction = jnp.clip(fraction, 0, 1)
    # The first 12 bits of the fraction are multiplied as integers, and the rest is less than 2**-12.
    first = jnp.floor(fraction * 4096)
    high, low = first.astype(jnp.int32) * (count // 4096), first.astype(jnp.int32) * (count % 4096)
    rest = (low % 4096).astype(fraction.dtype) / 4096 + (fraction - first / 4096) * count
    whole = high + low // 4096 + jnp.floor(rest).astype(jnp.int32)
    part = rest - jnp.floor(rest)
    return whole + ((part > 0.5) | ((part == 0.5) & (whole % 2 == 1))).astype(jnp.int32)


def count_along(x: jax.Array, axes: tuple[int, ...]) -> int:
    """Returns how many numbers of the whole lie along some axes."""
    return math.prod(x.shape[axis] for axis in axes) * size_of(split_of(x).of(axes))


def places_along(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the place of each number in the whole along some axes, in the order of the array."""
    split, places, stride = split_of(x), jnp.zeros(x.shape, jnp.int32), 1
    for axis in sorted(axes, reverse=True):
        own = lax.broadcasted_iota(jnp.int32, x.shape, axis)
        names = split.dims[axis]
        first = lax.axis_index(names) * x.shape[axis] if names else 0
        places = places + (own + first) * stride
        stride *= x.shape[axis] * size_of(names)
    return places


def smallest(sizes: jax.Array, wanted: jax.Array | int, over: Over) -> jax.Array:
    """Returns where the `wanted` smallest of sizes >= 0 are, along some axes. Of equal ones, the first are taken.

    A NaN counts as the largest. The level below which they lie is searched for by counting, since the bits of floats
    are in the order of their sizes. That takes some ten passes over the sizes, where a sort takes far longer.
    """
    sizes = lax.stop_gradient(sizes)
    count = count_along(sizes, over.axes)
    if count >= 2**31:
        raise ValueError(f"`x` must have fewer than 2**31 weights to select from, got {count}")
    if not count:
        return jnp.zeros(sizes.shape, bool)
    integer = jnp.int64 if sizes.dtype == jnp.float64 else jnp.int32
    keys = jnp.minimum(lax.bitcast_convert_type(sizes, integer), _bits_of_nan(sizes.dtype))

    def counted(condition: jax.Array) -> jax.Array:
        return sum_of(condition.astype(jnp.int32), over).astype(jnp.int32)

    least, most = -peak(-keys, over, -np.iinfo(integer).max), peak(keys, over, 0)
    wanted = jnp.zeros_like(most, dtype=jnp.int32) + wanted
    low, high, below, up_to = _search(lambda key: counted(keys <= key), least - 1, most, wanted, count, over)

    # Either side is right now, or all that lie between are equal, and the first of these are taken.
    between, places = (keys > low) & (keys <= high), places_along(sizes, over.axes)
    rest = wanted - below
    first, last, _, found = _search(
        lambda place: counted(between & (places <= place)),
        jnp.full_like(rest, -1),
        jnp.full_like(rest, count - 1),
        rest,
        up_to - below,
        over,
    )
    return (keys <= low) | (between & (places <= jnp.where(found == rest, last, first)))


def _bits_of_nan(dtype: np.dtype) -> int:
    return 0x7FC00000 if dtype == jnp.float32 else 0x7FF8000000000000


def _search(
    count_to: Callable[[jax.Array], jax.Array],
    low: jax.Array,
    high: jax.Array,
    wanted: jax.Array,
    total: jax.Array | int,
    over: Over,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns `low`, `high` and the counts up to them, brought together around where the count reaches `wanted`.

    In the end one of the counts is `wanted`, or there is nothing between the two. Guesses by proportion take turns with
    halving, which bounds their number.
    """
    counts = (jnp.zeros_like(wanted), jnp.zeros_like(wanted) + total)

    def is_open(low: jax.Array, high: jax.Array, below: jax.Array, up_to: jax.Array) -> jax.Array:
        return (high - low > 1) & (below != wanted) & (up_to != wanted)

    def step(state: _State) -> _State:
        low, high, below, up_to, turn = state
        gap = high - low
        part = (wanted - below).astype(jnp.float32) / jnp.maximum(up_to - below, 1).astype(jnp.float32)
        guess = (part * gap.astype(jnp.float32)).astype(gap.dtype)
        middle = low + jnp.clip(jnp.where(turn % 2 == 0, guess, gap // 2), 1, jnp.maximum(gap - 1, 1))
        found = count_to(middle)
        goes_up, goes_on = found < wanted, is_open(low, high, below, up_to)
        rises, falls = goes_on & goes_up, goes_on & ~goes_up
        return (
            jnp.where(rises, middle, low),
            jnp.where(falls, middle, high),
            jnp.where(rises, found, below),
            jnp.where(falls, found, up_to),
            turn + 1,
        )

    def goes_on(state: _State) -> jax.Array:
        *found, turn = state
        is_any = jnp.any(is_open(*found))
        return (turn < _MOST_STEPS) & (somewhere(is_any) if over.names else is_any)

    low, high, below, up_to, _ = lax.while_loop(goes_on, step, (low, high, *counts, jnp.zeros((), jnp.int32)))
    return low, high, below, up_to
