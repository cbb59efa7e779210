"""Prox of the penalties that are norms of groups of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxreg._matrix import Axes, within_groups
from jaxreg._numerics import as_wide, checked_step, norms, number
from jaxreg.prox._elementwise import soft


def group_lasso(
    x: ArrayLike, step: ArrayLike, *, group_axis: Axes = -1, batch_axis: Axes = (), size_weighted: bool = False
) -> jax.Array:
    """Block soft thresholding: (1 − step/‖x_g‖)₊ x_g for each group. The prox of `jaxreg.penalties.group_lasso`.

    With a step for each weight, a group is zero if ‖x_g/step‖ ≤ 1; else it is x_g·s/(s + step), where s is its norm,
    found by Newton's method.

    Args:
      x: a real floating-point array of rank >= 1.
      step: a number >= 0, or an array of the shape of `x`.
      group_axis, batch_axis, size_weighted: as in `jaxreg.penalties.group_lasso`.

    Returns:
      An array of the shape and dtype of `x`, computed in at least float32.

    Raises:
      TypeError, ValueError: as `l1` and `jaxreg.penalties.group_lasso` do.

    >>> jaxreg.prox.group_lasso(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 2.5)
    Array([[1.5, 0. ],
           [2. , 0. ]], dtype=float32)

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.
    """
    wide = as_wide(x)
    axes, weight = within_groups(wide, group_axis, batch_axis, size_weighted)
    return _shrunk(wide, weight * checked_step(step, wide), axes).astype(jnp.asarray(x).dtype)


def sparse_group_lasso(
    x: ArrayLike,
    step: ArrayLike,
    *,
    l1: ArrayLike = 1.0,
    group: ArrayLike = 1.0,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """Soft thresholding by step·l1, then of blocks by step·group. The prox of `jaxreg.penalties.sparse_group_lasso`.

    Args:
      x, step: as in `group_lasso`.
      l1: the weight of Σ|x|, a number >= 0.
      group: the weight of Σ_g ‖x_g‖, a number >= 0.
      group_axis, batch_axis, size_weighted: as in `jaxreg.penalties.group_lasso`.

    Dtypes and errors are those of `group_lasso`.

    >>> print(jaxreg.prox.sparse_group_lasso(jnp.array([[4.0, 0.3], [0.5, 0.4]]), 1.0, group=1.5))
    [[1.5 0. ]
     [0.  0. ]]

    Source: Simon, Friedman, Hastie and Tibshirani, A sparse-group lasso, 2013.
    """
    wide = as_wide(x)
    axes, weight = within_groups(wide, group_axis, batch_axis, size_weighted)
    step, l1, group = checked_step(step, wide), number(l1, wide, name="l1"), number(group, wide, name="group")
    return _shrunk(soft(wide, step * l1), weight * step * group, axes).astype(jnp.asarray(x).dtype)


def linf(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """All magnitudes cut down to one level θ, with Σ(|x| − θ)₊ = step; 0 if Σ|x| ≤ step. The prox of `penalties.linf`.

    It is x minus its projection on the l1 ball of radius `step`.

    Args:
      x: a real floating-point array of any shape.
      step: a number >= 0.

    Dtypes and errors are those of `l1`.

    >>> jaxreg.prox.linf(jnp.array([3.0, -0.5, -2.0]), 2.0)
    Array([ 1.5, -0.5, -1.5], dtype=float32)

    Source: Duchi et al., Efficient projections onto the l1-ball for learning in high dimensions, 2008.
    """
    wide = as_wide(x)
    step = checked_step(step, wide, for_each=False)
    level = cut_level(jnp.abs(wide).ravel(), step)
    return jnp.clip(wide, -level, level).astype(jnp.asarray(x).dtype)


def cut_level(sizes: jax.Array, step: jax.Array) -> jax.Array:
    """The level θ >= 0 with Σ(sizes − θ)₊ = step, 0 where there is none."""
    if not sizes.size:
        return jnp.zeros((), sizes.dtype)
    # The sorted sizes give the number that are cut; the level itself comes from the sum of these alone.
    largest = lax.stop_gradient(jnp.max(sizes))
    # Its reciprocal must not be a denormal number, which hardware may take for 0.
    unit = jnp.minimum(jnp.where(largest > 0, largest, jnp.ones_like(largest)), 1 / np.finfo(sizes.dtype).tiny)
    sizes = sizes / unit
    ordered = jnp.sort(lax.stop_gradient(sizes))[::-1]
    counts = jnp.asarray(np.arange(1, sizes.size + 1), sizes.dtype)
    levels = (jnp.cumsum(ordered) - lax.stop_gradient(step) / unit) / counts
    count = jnp.maximum(jnp.sum((ordered > levels).astype(jnp.int32)), 1)
    cut = sizes >= jnp.take(ordered, count - 1)
    kept = jnp.sum(jnp.where(cut, sizes, jnp.zeros_like(sizes))) - step / unit
    level = jnp.maximum(kept / jnp.sum(cut.astype(sizes.dtype)), 0) * unit
    return jnp.where(jnp.isnan(largest), largest, level)


def _shrunk(x: jax.Array, step: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Groups, whose weights lie along `axes`, moved towards 0 by the steps of their weights."""
    if step.ndim == 0:
        factor, root = norms(x, axes)
        dead = factor * root <= step
        cut = jnp.where(dead, jnp.zeros_like(root), step) / factor / jnp.where(dead, jnp.ones_like(root), root)
        return jnp.where(dead, jnp.zeros_like(x), x * (1 - cut))
    # In units of the group's magnitude, so that no square of a small norm is divided by.
    unit, _ = norms(lax.stop_gradient(x), axes)
    x, step = x * (1 / unit), jnp.minimum(step * (1 / unit), 1e30)
    size = _norm_after(x, step, axes)
    below = size + step
    return unit * (x * (size / jnp.where(below > 0, below, jnp.ones_like(below))))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _norm_after(x: jax.Array, step: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The root s of Σ(x/(s + step))² = 1 in each group, 0 where the sum is below 1 at s = 0 already.

    The root of that sum, upside down, is concave in s, so Newton's method rises to the root from below. It starts where
    no term is above 1, so nothing overflows.
    """
    highest = functools.partial(jnp.max, axis=axes, keepdims=True, initial=0.0)
    factor, root = norms(x, axes)
    start = jnp.maximum(highest(jnp.abs(x) - step), factor * root - highest(step))
    start = jnp.maximum(start, 0)

    def newton(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        s, _, count = state
        ratio, slope = _terms(x, step, s, axes)
        square = jnp.sum(jnp.square(ratio), axis=axes, keepdims=True)
        rise = square * (jnp.sqrt(square) - 1) / jnp.where(slope > 0, slope, jnp.ones_like(slope))
        rise = jnp.where((slope > 0) & (rise > 0), rise, jnp.zeros_like(rise))
        return s + rise, rise, count + 1

    def goes_on(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        s, rise, count = state
        return (count < 100) & jnp.any(rise > 2 * np.finfo(s.dtype).eps * s)

    first = newton((start, start, jnp.zeros((), jnp.int32)))
    return lax.while_loop(goes_on, newton, first)[0]


@_norm_after.defjvp
def _norm_after_jvp(
    axes: tuple[int, ...], primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, step), (dx, dstep) = primals, tangents
    s = _norm_after(x, step, axes)
    ratio, slope = _terms(x, step, s, axes)
    below = jnp.where(s + step > 0, s + step, jnp.ones_like(step))
    change = jnp.sum(ratio / below * dx - jnp.square(ratio) / below * dstep, axis=axes, keepdims=True)
    alive = (s > 0) & (slope > 0)
    return s, jnp.where(alive, change / jnp.where(alive, slope, jnp.ones_like(slope)), jnp.zeros_like(s))


def _terms(x: jax.Array, step: jax.Array, s: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """x/(s + step), and the sum of its squares over s + step, half of how fast the sum of squares falls."""
    below = jnp.where(s + step > 0, s + step, jnp.ones_like(step))
    ratio = x / below
    return ratio, jnp.sum(jnp.square(ratio) / below, axis=axes, keepdims=True)
