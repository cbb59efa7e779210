"""Proxes of the penalties that are norms of groups of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxreg._checks import checked_step, option
from jaxreg._matrix import Axes, within_groups
from jaxreg._names import public
from jaxreg._numerics import as_wide, in_dtype_of, largest, norms, sum_of
from jaxreg.prox._elementwise import soft


@public
def group_lasso(
    x: ArrayLike, step: ArrayLike, *, group_axis: Axes = -1, batch_axis: Axes = (), size_weighted: bool = False
) -> jax.Array:
    """Returns (1 − step/‖x_g‖)₊ x_g for each group: block soft thresholding, the prox of `penalties.group_lasso`.

    With a step for each weight, a group is zero if ‖x_g/step‖ ≤ 1. Else it is x_g·s/(s + step), where s is its norm,
    found by Newton's method. See `jaxreg.GroupLasso`.

    >>> jaxreg.prox.group_lasso(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 2.5)
    Array([[1.5, 0. ],
           [2. , 0. ]], dtype=float32)
    """
    wide = as_wide(x)
    axes, weight = within_groups(wide, group_axis, batch_axis, size_weighted)
    return in_dtype_of(x, _shrunk(wide, weight * checked_step(step, wide), axes))


@public
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
    """Returns the prox of `l1` by step·l1, then that of `group_lasso` by step·group.

    It is the prox of `jaxreg.penalties.sparse_group_lasso`. See `jaxreg.SparseGroupLasso`.

    >>> print(jaxreg.prox.sparse_group_lasso(jnp.array([[4.0, 0.3], [0.5, 0.4]]), 1.0, group=1.5))
    [[1.5 0. ]
     [0.  0. ]]
    """
    wide = as_wide(x)
    axes, weight = within_groups(wide, group_axis, batch_axis, size_weighted)
    step, l1, group = checked_step(step, wide), option(l1, wide, name="l1"), option(group, wide, name="group")
    return in_dtype_of(x, _shrunk(soft(wide, step * l1), weight * step * group, axes))


def _shrunk(x: jax.Array, step: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns groups, whose weights lie along `axes`, moved towards 0 by the steps of their weights."""
    if step.ndim == 0:
        factor, rest = norms(x, axes)
        dead = factor * rest <= step
        cut = jnp.where(dead, jnp.zeros_like(rest), step) / factor / jnp.where(dead, jnp.ones_like(rest), rest)
        return jnp.where(dead, jnp.zeros_like(x), x * (1 - cut))
    # In units of the group's magnitude, so that no square of a small norm is divided by.
    unit, _ = norms(lax.stop_gradient(x), axes)
    step = jnp.minimum(step * (1 / unit), 1e30)
    size = _norm_after(x * (1 / unit), step, axes)
    below = size + step
    return x * (size / jnp.where(below > 0, below, jnp.ones_like(below)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _norm_after(x: jax.Array, step: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the root s of Σ(x/(s + step))² = 1 in each group, and 0 where the sum is below 1 at s = 0 already.

    One over the square root of that sum is concave in s, so Newton's method rises to the root from below. It starts
    where no term is above 1, so nothing overflows.
    """
    factor, rest = norms(x, axes)
    start = jnp.maximum(largest(jnp.abs(x) - step, axes), factor * rest - largest(step, axes))
    start = jnp.maximum(start, 0)

    def newton(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        s, _, count = state
        ratio, slope = _terms(x, step, s, axes)
        square = sum_of(jnp.square(ratio), axes)
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
    change = sum_of(ratio / below * dx - jnp.square(ratio) / below * dstep, axes)
    alive = (s > 0) & (slope > 0)
    return s, jnp.where(alive, change / jnp.where(alive, slope, jnp.ones_like(slope)), jnp.zeros_like(s))


def _terms(x: jax.Array, step: jax.Array, s: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns x/(s + step), and the sum of its squares over s + step, half of how fast the sum of squares falls."""
    below = jnp.where(s + step > 0, s + step, jnp.ones_like(step))
    ratio = x / below
    return ratio, sum_of(jnp.square(ratio) / below, axes)
