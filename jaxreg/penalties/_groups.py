"""Penalties that are norms of groups of weights."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._checks import option
from jaxreg._matrix import Axes, within_groups
from jaxreg._names import public
from jaxreg._numerics import as_wide, everything, magnitude, near_one, norm, scaled, sum_of


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
