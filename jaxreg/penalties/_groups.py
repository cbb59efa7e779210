"""Penalties that are norms of groups of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import option
from jaxreg._matrix import Axes, within_groups
from jaxreg._names import public
from jaxreg._numerics import Over, as_wide, everything, magnitude, near_one, norm, norms, scaled, sum_of
from jaxreg.penalties._elementwise import mcp_of, scad_of


@public
def group_lasso(
    x: ArrayLike, *, group_axis: Axes = -1, batch_axis: Axes = (), size_weighted: bool = False
) -> jax.Array:
    """Returns the sum of the norms of groups, Σ_g ‖x_g‖. Each index along `group_axis` is one group.

    The gradient of a group is x_g/‖x_g‖, and 0 at a group of zeros. See `jaxreg.GroupLasso`.

    >>> float(jaxreg.penalties.group_lasso(jnp.array([[3.0, 0.0], [4.0, 0.0]])))
    5.0
    """
    x = as_wide(x)
    axes, weight = within_groups(x, group_axis, batch_axis, size_weighted)
    return weight * sum_of(sum_of(norm(x, axes), everything(x)))


@public
def sparse_group_lasso(
    x: ArrayLike,
    *,
    l1: ArrayLike = 1.0,
    group: ArrayLike = 1.0,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """Returns l1 · Σ|x| + group · Σ_g ‖x_g‖, for numbers `l1` and `group` >= 0.

    The gradient is the sum of those of `l1` and `group_lasso`. See `jaxreg.SparseGroupLasso`.

    >>> float(jaxreg.penalties.sparse_group_lasso(jnp.array([[3.0, 0.0], [4.0, 0.0]]), l1=0.5))
    8.5
    """
    x = as_wide(x)
    groups = group_lasso(x, group_axis=group_axis, batch_axis=batch_axis, size_weighted=size_weighted)
    absolute = scaled(option(l1, x, name="l1"), sum_of(magnitude(x)), name="l1")
    return absolute + scaled(option(group, x, name="group"), groups, name="group")


@public
def group_mcp(
    x: ArrayLike,
    *,
    lam: ArrayLike = 1.0,
    gamma: ArrayLike = 3.0,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """Returns the MCP of the norms n of groups: the sum of λn − n²/(2γ) where n ≤ γλ, and of γλ²/2 beyond.

    The gradient of a group is (λ − n/γ)₊ x_g/n, and 0 at a group of zeros. See `jaxreg.GroupMCP`.

    >>> float(jaxreg.penalties.group_mcp(jnp.array([[3.0, 0.6], [4.0, 0.8]]), gamma=2.0))
    1.75
    """
    x = as_wide(x)
    axes, weight = within_groups(x, group_axis, batch_axis, size_weighted)
    lam, gamma = option(lam, x, name="lam"), option(gamma, x, name="gamma", above=0.0)
    return sum_of(sum_of(mcp_of(_finite_norm(x, axes), weight * lam, gamma), everything(x)))


@public
def group_scad(
    x: ArrayLike,
    *,
    lam: ArrayLike = 1.0,
    a: ArrayLike = 3.7,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """Returns the SCAD of the norms n of groups: the sum of λn up to λ, of a parabola up to aλ, and λ²(a + 1)/2 beyond.

    The gradient of a group is x_g/n times λ up to λ, (aλ − n)/(a − 1) up to aλ and 0 beyond. It is 0 at a group of
    zeros. See `jaxreg.GroupSCAD`.

    >>> float(jaxreg.penalties.group_scad(jnp.array([[3.0, 0.6], [4.0, 0.8]]), a=3.0))
    3.0
    """
    x = as_wide(x)
    axes, weight = within_groups(x, group_axis, batch_axis, size_weighted)
    lam, a = option(lam, x, name="lam"), option(a, x, name="a", above=1.0)
    return sum_of(sum_of(scad_of(_finite_norm(x, axes), weight * lam, a), everything(x)))


def _finite_norm(x: jax.Array, axes: Over) -> jax.Array:
    """Returns ‖x‖ over `axes` for a penalty that is constant for large norms, where an infinite weight has no slope."""
    most = np.finfo(x.dtype).max
    return norm(jnp.clip(x, -most, most), axes)


@public
def hinged_norm(x: ArrayLike, *, threshold: ArrayLike = 1.0, group_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Returns the sum of squares of what the norms of groups have beyond a threshold c >= 0, Σ_g (‖x_g‖ − c)₊².

    The gradient of a group is 2(1 − c/‖x_g‖)₊ x_g. See `jaxreg.HingedNorm`.

    >>> float(jaxreg.penalties.hinged_norm(jnp.array([[3.0, 0.3], [4.0, 0.4]]), threshold=2.0))
    9.0
    """
    x = as_wide(x)
    axes, _ = within_groups(x, group_axis, batch_axis, False)
    return sum_of(sum_of(_squares_beyond(x, option(threshold, x, name="threshold"), axes), everything(x)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _squares_beyond(x: jax.Array, threshold: jax.Array, axes: Over) -> jax.Array:
    """Returns (‖x‖ − c)₊² over `axes`, a squared distance from a ball. Its gradient fits where the square does not."""
    return sum_of(jnp.square(x * _share_beyond(x, threshold, axes)), axes)


@_squares_beyond.defjvp
def _squares_beyond_jvp(
    axes: Over, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, threshold), (dx, dthreshold) = primals, tangents
    share = _share_beyond(x, threshold, axes)
    change = 2 * sum_of(x * share * dx, axes) - 2 * norm(x, axes) * share * dthreshold
    return _squares_beyond(x, threshold, axes), change


def _share_beyond(x: jax.Array, threshold: jax.Array, axes: Over) -> jax.Array:
    """Returns (1 − c/‖x‖)₊."""
    factor, rest = norms(x, axes)
    inside = factor * rest <= threshold
    bound = jnp.where(inside, jnp.zeros_like(rest), threshold) / factor
    return jnp.where(inside, jnp.zeros_like(rest), 1 - bound / jnp.where(inside, jnp.ones_like(rest), rest))


@public
def hoyer_square(x: ArrayLike, *, batch_axis: Axes = ()) -> jax.Array:
    """Returns the Hoyer square (Σ|x|)²/Σx², from 1 for a single weight to their number for weights of one size.

    The gradient is 2(Σ|x|/Σx²)(sign(x) − x Σ|x|/Σx²), and 0 at an array of zeros, where the value is 0 too. See
    `jaxreg.HoyerSquare`.

    >>> print(f"{jaxreg.penalties.hoyer_square(jnp.array([3.0, -4.0, 0.0])):.4f}")
    1.9600
    """
    x = as_wide(x)
    over, _ = within_groups(x, (), batch_axis, False)
    x, _, _ = near_one(x, over)
    absolute, squares = sum_of(magnitude(x), over), sum_of(jnp.square(x), over)
    is_zero = squares == 0
    ratio = absolute / jnp.where(is_zero, jnp.ones_like(squares), squares) * absolute
    return sum_of(sum_of(jnp.where(is_zero, jnp.zeros_like(ratio), ratio), everything(x)))
