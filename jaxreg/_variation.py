"""Signals along an axis of an array: their total variation, and the signals of less variation that are near them."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._checks import checked_count
from jaxreg._matrix import Layout, Matrices, View, positive_axes
from jaxreg._numerics import magnitude, nothing, scale_near_one, sum_of
from jaxreg._shards import Names, Split, as_varying, divided_as, split_of
from jaxreg._spread import ByJob, Unit, dealt, map_matrices, penalty_of_matrices


def variation(x: jax.Array, axis: int) -> jax.Array:
    """Returns Σ|x_{i+1} − x_i| along an axis, added up over the signals of an array, which may be divided."""
    with _signals(x, axis) as (signals, view):
        return penalty_of_matrices(ByJob(_Variation()), signals, view)


def smoothed(x: jax.Array, step: jax.Array, axis: int) -> jax.Array:
    """Returns argmin_y ½‖y − x‖² + step · Σ|y_{i+1} − y_i| of each signal along an axis."""
    with _signals(x, axis) as (signals, view):
        return map_matrices(_Smoothed(), signals, view, step).reshape(x.shape)


@contextmanager
def _signals(x: jax.Array, axis: int) -> Iterator[tuple[jax.Array, View]]:
    """Yields an array of rank >= 2, and the view in which its rows are the signals."""
    axis = checked_count(axis, name="axis", least=None)
    (axis,) = positive_axes(axis, x.ndim, name="axis")
    if x.ndim > 1:
        yield x, View(out_axis=axis)
        return
    split = split_of(x)
    single = lax.expand_dims(x, (0,))
    with divided_as(single, Split(((), *split.dims), split.spare)):
        yield single, View(out_axis=1)


@dataclasses.dataclass(frozen=True)
class _Variation:
    """The job of the total variation for a device that has some signals whole."""

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> tuple[jax.Array, Any]:
        axis = layout.components
        if x.shape[axis] < 2:
            return sum_of(nothing(x)), nothing(x) if graded else None
        rise = jnp.diff(x, axis=axis)
        value = sum_of(magnitude(rise))
        return value, -jnp.diff(_between_zeros(jnp.sign(rise), axis), axis=axis) if graded else None


def _between_zeros(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])


@dataclasses.dataclass(frozen=True)
class _Smoothed:
    """The function of matrices, which may be divided, and a step, that smooths the vectors."""

    def __call__(self, matrices: Matrices, step: jax.Array) -> jax.Array:
        x, layout = matrices
        found = dealt(x, layout, "vectors")
        signals = jnp.moveaxis(found.array, layout.components, -1)
        return found.back(jnp.moveaxis(_smoothed(signals, step), -1, layout.components))


@jax.custom_jvp
def _smoothed(x: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the prox of the total variation of signals along the last axis.

    Let a signal be cut into parts, and let it be known on which side of each cut the result is higher. Then the result
    of each part is that of a signal by itself, whose ends the neighbors pull by the step. Its best constant is the mean
    m. The places where the result is above m are a least cut of a path: they are those with s = 1, where s in {0, 1}
    minimizes Σ s(m − x) + step · Σ|s_{i+1} − s_i|. Where s is not everywhere the same, the part is cut. Else the result
    is m.

    A round cuts all parts at once. There are about as many rounds as the number of parts has bits, and more where means
    cut signals unevenly. A cut that only rounding makes moves the result by no more than rounding.
    """
    last = (x.ndim - 1,)
    scale = scale_near_one(x, last)
    # Numbers that bound what sums need do not overflow when they are added up.
    pull = jnp.minimum(step * scale, float(np.finfo(x.dtype).max) ** 0.5)
    is_moved = pull > 0
    signals = jnp.where(jnp.isfinite(x) & is_moved, x * scale, jnp.zeros_like(x))

    def cut(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        rise, _, _ = state
        is_first, is_last = _ends(rise != 0)
        pulled = signals + pull * _change(rise)
        level = _means(pulled, is_first, is_last)
        above = _places_above(pulled, level, pull, is_first, is_last)
        found = jnp.where(is_first, rise, _rises(above))
        return found, level, jnp.any(found != rise)

    uncut = as_varying(jnp.zeros_like(signals), signals, pull)
    _, level, _ = lax.while_loop(lambda state: state[2], cut, (uncut, uncut, as_varying(jnp.array(True), uncut)))
    result = jnp.where(is_moved, level * (1 / scale), x)
    shown = jnp.where(jnp.all(jnp.isfinite(x), axis=-1, keepdims=True), result, jnp.full_like(x, jnp.nan))
    return jnp.where(jnp.isnan(step), step, shown)


@_smoothed.defjvp
def _smoothed_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The derivative is the mean over the parts on which the result is constant."""
    (x, step), (dx, dstep) = primals, tangents
    result = _smoothed(x, step)
    rise = _rises(lax.stop_gradient(result))
    is_first, is_last = _ends((rise != 0) | (step == 0))
    return result, _means(dx + dstep * _change(jnp.sign(rise)), is_first, is_last)


def _rises(x: jax.Array) -> jax.Array:
    """Returns x_i − x_{i−1}, and 0 at the first place."""
    return jnp.diff(x, axis=-1, prepend=x[..., :1])


def _change(rise: jax.Array) -> jax.Array:
    """Returns rise_{i+1} − rise_i, with 0 behind the last place."""
    return jnp.diff(rise, axis=-1, append=jnp.zeros_like(rise[..., :1]))


def _ends(is_cut: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns which places are the first and the last of a part, for cuts before some places."""
    edge = jnp.ones_like(is_cut[..., :1])
    return jnp.concatenate([edge, is_cut[..., 1:]], -1), jnp.concatenate([is_cut[..., 1:], edge], -1)


def _means(x: jax.Array, is_first: jax.Array, is_last: jax.Array) -> jax.Array:
    """Returns the mean of each part at all its places, to the bit the same. It is linear in `x`."""

    def added(before: Any, after: Any) -> Any:
        (begun, total, count), (begins, further, more) = before, after
        return (
            begun | begins,
            jnp.where(begins, further, total + further),
            jnp.where(begins, more, count + more),
        )

    one = as_varying(jnp.ones_like(x), is_first, x)
    _, total, count = _running(added, (is_first, as_varying(x, one), one), (False, 0.0, 0.0))
    return _from_next(total / count, is_last)


def _from_next(x: jax.Array, is_given: jax.Array) -> jax.Array:
    """Returns at each place the number at the next place where it is given."""

    def given(after: Any, before: Any) -> Any:
        (known, number), (knows, own) = after, before
        return known | knows, jnp.where(knows, own, number)

    return _running(given, (is_given, x), (False, 0.0), backward=True)[1]


def _places_above(
    x: jax.Array, level: jax.Array, pull: jax.Array, is_first: jax.Array, is_last: jax.Array
) -> jax.Array:
    """Returns 1 where the least cut of each part is above its level, and 0 elsewhere.

    Let d be by how much it costs more to be above at a place than to be below, with the best choice at all places
    before. It is cost + clip(d of the place before, −pull, pull). Functions clip(d + shift, low, high) of d are closed
    under composition. The choice at a place is that of the next one, unless d is beyond the pull.
    """
    cost = level - x

    def composed(first: Any, second: Any) -> Any:
        (shift, low, high), (further, lower, higher) = first, second
        return shift + further, jnp.clip(low + further, lower, higher), jnp.clip(high + further, lower, higher)

    reach = jnp.where(is_first, jnp.zeros_like(x), pull)
    _, more, _ = _running(composed, (cost, cost - reach, cost + reach), (0.0, -np.inf, np.inf))
    return _from_next((more < 0).astype(x.dtype), is_last | (jnp.abs(more) > pull))


def _running(
    combined: Callable[[Any, Any], Any], parts: tuple[jax.Array, ...], neutral: tuple[Any, ...], backward: bool = False
) -> tuple[jax.Array, ...]:
    """Returns what an associative function makes of all places up to each one, or from the last one back to it.

    Each step doubles the number of places. `lax.associative_scan` has fewer operations, and takes seconds to compile.
    """
    size = parts[0].shape[-1]

    def doubled(step: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        distance = jnp.left_shift(1, step)

        def moved(part: jax.Array, value: Any) -> jax.Array:
            beyond = jnp.full_like(part, value)
            joined = jnp.concatenate([part, beyond] if backward else [beyond, part], axis=-1)
            return lax.dynamic_slice_in_dim(joined, distance if backward else size - distance, size, part.ndim - 1)

        found: tuple[jax.Array, ...] = combined(tuple(map(moved, parts, neutral)), parts)
        return found

    return lax.fori_loop(0, (size - 1).bit_length(), doubled, parts)
