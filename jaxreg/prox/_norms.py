"""Proxes of the norms of a whole array, of its weights or of the singular values of its matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxreg._checks import checked_step
from jaxreg._matrix import Axes, on_matrices
from jaxreg._names import public
from jaxreg._numerics import as_wide, in_dtype_of, largest, sum_of
from jaxreg._singular import Map, map_singular_values
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
    level = _cut_level(jnp.abs(wide).ravel(), step)
    return in_dtype_of(x, jnp.clip(wide, -level, level))


@public
def nuclear(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns U (Σ − step)₊ Vᵀ: soft thresholding of the singular values, the prox of `jaxreg.penalties.nuclear`.

    Singular values that should be 0 are 0 to rounding. See `jaxreg.Nuclear`.

    >>> print(jaxreg.prox.nuclear(jnp.diag(jnp.array([3.0, -0.5])), 1.0).round(4))
    [[2. 0.]
     [0. 0.]]
    """
    return _mapped(soft, x, step, out_axis, batch_axis)


@public
def spectral(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the matrix with its largest singular values cut down to one level, as `linf` cuts weights.

    It is the prox of `jaxreg.penalties.spectral`. See `jaxreg.Spectral`.

    >>> print(jaxreg.prox.spectral(jnp.diag(jnp.array([3.0, 2.5])), 1.5).round(4))
    [[2. 0.]
     [0. 2.]]
    """
    return _mapped(_cut, x, step, out_axis, batch_axis)


def _mapped(g: Map, x: ArrayLike, step: ArrayLike, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    wide = as_wide(x)
    step = checked_step(step, wide, for_each=False)
    one = functools.partial(map_singular_values, g, parameter=step)
    return in_dtype_of(x, on_matrices(jax.vmap(one), wide, out_axis=out_axis, batch_axis=batch_axis))


def _cut(s: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.minimum(s, _cut_level(s, step))


def _cut_level(sizes: jax.Array, step: jax.Array) -> jax.Array:
    """Returns the level θ >= 0 with Σ(sizes − θ)₊ = step, and 0 where there is none."""
    if not sizes.size:
        return jnp.zeros((), sizes.dtype)
    # The sorted sizes give the number of those that are cut. The level itself comes from the sum of these alone.
    highest = lax.stop_gradient(largest(sizes))
    # Its reciprocal must not be a denormal number, which hardware may take for 0.
    unit = jnp.minimum(jnp.where(highest > 0, highest, jnp.ones_like(highest)), 1 / np.finfo(sizes.dtype).tiny)
    sizes = sizes / unit
    ordered = jnp.sort(lax.stop_gradient(sizes))[::-1]
    counts = jnp.asarray(np.arange(1, sizes.size + 1), sizes.dtype)
    levels = (jnp.cumsum(ordered) - lax.stop_gradient(step) / unit) / counts
    count = jnp.maximum(sum_of((ordered > levels).astype(jnp.int32)), 1)
    cut = sizes >= jnp.take(ordered, count - 1)
    kept = sum_of(jnp.where(cut, sizes, jnp.zeros_like(sizes))) - step / unit
    level = jnp.maximum(kept / sum_of(cut.astype(sizes.dtype)), 0) * unit
    return jnp.where(jnp.isnan(highest), highest, level)
