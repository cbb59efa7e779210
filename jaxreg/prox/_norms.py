"""Proxes of the norms of a whole array, of its weights or of the singular values of its matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxreg._checks import checked_step
from jaxreg._matrix import Axes, View
from jaxreg._names import public
from jaxreg._numerics import Over, as_wide, everything, in_dtype_of, largest, sum_of
from jaxreg._singular import Map, MapSingularValues
from jaxreg._spread import map_matrices
from jaxreg.prox._elementwise import soft


@public
def linf(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns all magnitudes cut down to one level θ, with Σ(|x| − θ)₊ = step: the prox of `jaxreg.penalties.linf`.

    It is 0 if Σ|x| ≤ step. The result is x minus its projection on the l1 ball of radius `step`. See `jaxreg.LInf`.

    >>> jaxreg.prox.linf(jnp.array([3.0, -0.5, -2.0]), 2.0)
    Array([ 1.5, -0.5, -1.5], dtype=float32)
    """
    wide = as_wide(x)
    step = checked_step(step, wide, for_each=False)
    level = cut_level(jnp.abs(wide), step, everything(wide))
    return in_dtype_of(x, jnp.clip(wide, -level, level))


@public
def nuclear(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns U (Σ − step)₊ Vᵀ: soft thresholding of the singular values, the prox of `jaxreg.penalties.nuclear`.

    Singular values that should be 0 are 0 to rounding. See `jaxreg.Nuclear`.

    >>> print(jaxreg.prox.nuclear(jnp.diag(jnp.array([3.0, -0.5])), 1.0).round(4))
    [[2. 0.]
     [0. 0.]]
    """
    return map_singular_values_of(soft, x, step, out_axis, batch_axis)


@public
def spectral(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the matrix with its largest singular values cut down to one level, as `linf` cuts weights.

    It is the prox of `jaxreg.penalties.spectral`. See `jaxreg.Spectral`.

    >>> print(jaxreg.prox.spectral(jnp.diag(jnp.array([3.0, 2.5])), 1.5).round(4))
    [[2. 0.]
     [0. 2.]]
    """
    return map_singular_values_of(_cut, x, step, out_axis, batch_axis)


def map_singular_values_of(g: Map, x: ArrayLike, step: ArrayLike, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    """Returns an array whose matrices have the singular values that `g` makes of theirs with a step."""
    wide = as_wide(x)
    step = checked_step(step, wide, for_each=False)
    view = View(out_axis=out_axis, batch_axis=batch_axis)
    return in_dtype_of(x, map_matrices(MapSingularValues(g), wide, view, step))


def _cut(s: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.minimum(s, cut_level(s, step, Over((0,))))


@functools.partial(jax.jit, static_argnames="over")
def cut_level(sizes: jax.Array, step: jax.Array, over: Over) -> jax.Array:
    """Returns the level θ >= 0 with Σ(sizes − θ)₊ = step, and 0 where there is none, kept with the axes of `over`.

    For a set of sizes, (Σ sizes − step)/count is the level if exactly these lie above it. It rises as those below it
    are left out, until there are none. That takes few passes and no sort, so nothing is gathered.
    """
    if not sizes.size:
        return jnp.zeros((), sizes.dtype)
    highest = lax.stop_gradient(largest(sizes, over))
    # Its reciprocal must not be a denormal number, which hardware may take for 0.
    unit = jnp.minimum(jnp.where(highest > 0, highest, jnp.ones_like(highest)), 1 / np.finfo(sizes.dtype).tiny)
    sizes, step = sizes / unit, step / unit

    def above(bound: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the number of sizes above a bound, and the level if all of these are above it."""
        is_above = sizes > bound
        count = sum_of(is_above.astype(sizes.dtype), over)
        kept = sum_of(jnp.where(is_above, sizes, jnp.zeros_like(sizes)), over)
        return count, (kept - step) / jnp.maximum(count, 1)

    def higher(state: Any) -> Any:
        bound, count, level, _ = state
        fewer, next_level = above(level)
        goes_on = (fewer > 0) & (fewer < count)
        return (jnp.where(goes_on, level, bound), fewer, jnp.where(goes_on, next_level, level), goes_on)

    lowest = jnp.zeros_like(highest)  # zeros never lie above the level
    first = (lowest, *above(lowest), jnp.ones_like(highest, dtype=bool))
    bound = lax.while_loop(lambda state: jnp.any(state[-1]), higher, lax.stop_gradient(first))[0]
    level = jnp.maximum(above(bound)[1], 0) * unit
    return jnp.where(jnp.isnan(highest), highest, level)
