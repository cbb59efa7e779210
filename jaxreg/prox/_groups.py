"""Proxes of the penalties that are norms of groups of weights."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxreg._checks import checked_step, option
from jaxreg._matrix import Axes, within_groups
from jaxreg._names import public
from jaxreg._numerics import Over, as_wide, in_dtype_of, largest, norms, plain_squares, sum_of
from jaxreg._shards import somewhere
from jaxreg.prox._elementwise import mcp, scad, soft


@public
def group_lasso(
    x: ArrayLike, step: ArrayLike, *, group_axis: Axes = -1, batch_axis: Axes = (), size_weighted: bool = False
) -> jax.Array:
    """Returns (1 − step/‖x_g‖)₊ x_g for each group: block soft thresholding, the prox of `penalties.group_lasso`.

    With a step for each weight, a group is zero if ‖x_g/step‖ ≤ 1. Else it is x_g·s/(s + step), where s is its norm,
    found in a few passes. See `jaxreg.GroupLasso`.

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


@public
def group_mcp(
    x: ArrayLike,
    step: ArrayLike,
    *,
    lam: ArrayLike = 1.0,
    gamma: ArrayLike = 3.0,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """Returns groups whose norms are what `mcp` makes of them: the prox of `jaxreg.penalties.group_mcp`.

    Groups with a norm beyond γλ stay as they are. See `jaxreg.GroupMCP`.

    >>> jaxreg.prox.group_mcp(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0)
    Array([[3., 0.],
           [4., 0.]], dtype=float32)
    """
    wide = as_wide(x)
    axes, weight = within_groups(wide, group_axis, batch_axis, size_weighted)
    step, lam = checked_step(step, wide, for_each=False), weight * option(lam, wide, name="lam")
    return in_dtype_of(x, _shortened(wide, axes, lambda norm: mcp(norm, step, lam=lam, gamma=gamma)))


@public
def group_scad(
    x: ArrayLike,
    step: ArrayLike,
    *,
    lam: ArrayLike = 1.0,
    a: ArrayLike = 3.7,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """Returns groups whose norms are what `scad` makes of them: the prox of `jaxreg.penalties.group_scad`.

    Groups with a norm beyond aλ stay as they are. See `jaxreg.GroupSCAD`.

    >>> jaxreg.prox.group_scad(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0)
    Array([[3., 0.],
           [4., 0.]], dtype=float32)
    """
    wide = as_wide(x)
    axes, weight = within_groups(wide, group_axis, batch_axis, size_weighted)
    step, lam = checked_step(step, wide, for_each=False), weight * option(lam, wide, name="lam")
    return in_dtype_of(x, _shortened(wide, axes, lambda norm: scad(norm, step, lam=lam, a=a)))


def _shortened(x: jax.Array, axes: Over, prox: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns groups, whose weights lie along `axes`, with the norms that a prox makes of theirs.

    The prox leaves large norms as they are. A norm that does not fit counts as such.
    """
    factor, rest = norms(x, axes)
    is_huge = jnp.isinf(factor * rest)
    rest = jnp.where(is_huge, jnp.ones_like(rest), rest)
    # In units of the factor, so that no square of a small norm is divided by.
    share = prox(factor * rest) / factor / jnp.where(rest == 0, jnp.ones_like(rest), rest)
    return x * jnp.where(is_huge, jnp.ones_like(share), share)


@public
def hinged_norm(
    x: ArrayLike, step: ArrayLike, *, threshold: ArrayLike = 1.0, group_axis: Axes = -1, batch_axis: Axes = ()
) -> jax.Array:
    """Returns groups whose norms n beyond a threshold c become (n + 2·step·c)/(1 + 2·step), and the others as they are.

    It is the prox of `jaxreg.penalties.hinged_norm`. See `jaxreg.HingedNorm`.

    >>> jaxreg.prox.hinged_norm(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0, threshold=0.5)
    Array([[1.2, 0.3],
           [1.6, 0.4]], dtype=float32)
    """
    wide = as_wide(x)
    axes, _ = within_groups(wide, group_axis, batch_axis, False)
    step, bound = checked_step(step, wide, for_each=False), option(threshold, wide, name="threshold")
    factor, rest = norms(wide, axes)
    inside = factor * rest < bound
    kept = 1 / (1 + 2 * step)
    ball = jnp.where(inside, jnp.zeros_like(rest), bound) / factor / jnp.where(rest == 0, jnp.ones_like(rest), rest)
    share = jnp.where(inside, jnp.ones_like(rest), kept + (1 - kept) * ball)
    return in_dtype_of(x, wide * jnp.where(jnp.isnan(step), step, share))


def _shrunk(x: jax.Array, step: jax.Array, axes: Over) -> jax.Array:
    """Returns groups, whose weights lie along `axes`, moved towards 0 by the steps of their weights."""
    if step.ndim == 0:
        factor, rest = norms(x, axes)
        dead = factor * rest <= step
        cut = jnp.where(dead, jnp.zeros_like(rest), step) / factor / jnp.where(dead, jnp.ones_like(rest), rest)
        return jnp.where(dead, jnp.zeros_like(x), x * (1 - cut))
    # On a mesh all devices must take the same branch, because both hold collectives.
    return _shrunk_by_newton(x, step, axes) if axes.names else _shrunk_by_each(x, step, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shrunk_by_each(x: jax.Array, step: jax.Array, axes: Over) -> jax.Array:
    """Returns what `_shrunk_by_newton` does, in four passes where all groups allow it.

    Let t(s) = ‖x‖/√Σ(x/(s + step))², which is s plus a mean of the steps. The norm after the steps is where t is ‖x‖,
    or 0 if the sum is at most 1 at s = 0 already. The slope of t falls with s, to 1 at infinity, and is at most t(s)/s.
    So 2‖x‖ − t(‖x‖) is not above the norm, and a step of slope 1 leads from there to the norm, up to an error that is
    known. It is below rounding where steps are below a hundredth of the norm, as they are for most groups.
    """
    squares, is_usual = plain_squares(x, axes)
    norm, tiny = jnp.sqrt(squares), np.finfo(x.dtype).tiny

    def square(s: jax.Array) -> jax.Array:
        return sum_of(jnp.square(x / jnp.maximum(s + step, tiny)), axes)

    def t(square: jax.Array) -> jax.Array:
        return norm / jnp.sqrt(jnp.clip(square, tiny, 1 / tiny))

    def shrunk() -> jax.Array:
        below = size + step
        return x * (size / jnp.where(below > 0, below, jnp.ones_like(below)))

    low = jnp.maximum(2 * norm - t(square(norm)), 0)
    square_at_low = square(low)
    at_low = t(square_at_low)
    is_dead = (low == 0) & (square_at_low <= 1)  # which holds also where ‖x‖² vanishes
    size = jnp.maximum(low + norm - at_low, 0)
    is_near = (norm - at_low) * (at_low - low) <= np.finfo(x.dtype).eps * low * at_low
    return lax.cond(jnp.all(is_dead | is_usual & is_near), shrunk, lambda: _shrunk_by_newton(x, step, axes))


@_shrunk_by_each.defjvp
def _shrunk_by_each_jvp(
    axes: Over, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(lambda x, step: _shrunk_by_newton(x, step, axes), primals, tangents)


def _shrunk_by_newton(x: jax.Array, step: jax.Array, axes: Over) -> jax.Array:
    """Returns groups moved towards 0 by the steps of their weights, for all magnitudes of both."""
    # In units of the group's magnitude, so that no square of a small norm is divided by.
    unit, _ = norms(lax.stop_gradient(x), axes)
    step = jnp.minimum(step * (1 / unit), 1e30)
    size = _norm_after(x * (1 / unit), step, axes)
    below = size + step
    return x * (size / jnp.where(below > 0, below, jnp.ones_like(below)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _norm_after(x: jax.Array, step: jax.Array, axes: Over) -> jax.Array:
    """Returns the root s of Σ(x/(s + step))² = 1 in each group, and 0 where the sum is below 1 at s = 0 already.

    One over the square root of that sum is concave in s, so Newton's method rises to the root from below. It starts
    where no term is above 1, so nothing overflows. The curvature is at most 3/s times the slope: after a rise by less
    than √eps·s/2 the rest is below eps·s.
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
        rises = jnp.any(rise > math.sqrt(np.finfo(s.dtype).eps) / 2 * s)
        return (count < 100) & (somewhere(rises) if axes.names else rises)

    first = newton((start, start, jnp.zeros((), jnp.int32)))
    return lax.while_loop(goes_on, newton, first)[0]


@_norm_after.defjvp
def _norm_after_jvp(
    axes: Over, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, step), (dx, dstep) = primals, tangents
    s = _norm_after(x, step, axes)
    ratio, slope = _terms(x, step, s, axes)
    below = jnp.where(s + step > 0, s + step, jnp.ones_like(step))
    change = sum_of(ratio / below * dx - jnp.square(ratio) / below * dstep, axes)
    alive = (s > 0) & (slope > 0)
    return s, jnp.where(alive, change / jnp.where(alive, slope, jnp.ones_like(slope)), jnp.zeros_like(s))


def _terms(x: jax.Array, step: jax.Array, s: jax.Array, axes: Over) -> tuple[jax.Array, jax.Array]:
    """Returns x/(s + step), and the sum of its squares over s + step, half of how fast the sum of squares falls."""
    below = jnp.where(s + step > 0, s + step, jnp.ones_like(step))
    ratio = x / below
    return ratio, sum_of(jnp.square(ratio) / below, axes)
