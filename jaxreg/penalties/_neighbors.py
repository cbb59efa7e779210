"""Penalties of the differences of neighbors along an axis."""

import jax
from jax.typing import ArrayLike

from jaxreg._checks import option
from jaxreg._names import public
from jaxreg._numerics import as_wide, magnitude, scaled, sum_of
from jaxreg._variation import variation


@public
def total_variation(x: ArrayLike, *, axis: int = -1) -> jax.Array:
    """Returns the total variation Σ|x_{i+1} − x_i| along an axis, added up over all signals.

    The gradient is sign(x_i − x_{i−1}) − sign(x_{i+1} − x_i), where a difference of 0 counts for 0. See
    `jaxreg.TotalVariation`.

    >>> float(jaxreg.penalties.total_variation(jnp.array([1.0, 1.0, 4.0, 2.0])))
    5.0
    """
    return variation(as_wide(x), axis)


@public
def fused_lasso(x: ArrayLike, *, l1: ArrayLike = 1.0, tv: ArrayLike = 1.0, axis: int = -1) -> jax.Array:
    """Returns l1 · Σ|x| + tv · Σ|x_{i+1} − x_i|, for numbers `l1` and `tv` >= 0.

    The gradient is the sum of those of `l1` and `total_variation`. See `jaxreg.FusedLasso`.

    >>> float(jaxreg.penalties.fused_lasso(jnp.array([1.0, 1.0, 4.0, 2.0]), l1=0.5))
    9.0
    """
    x = as_wide(x)
    absolute = scaled(option(l1, x, name="l1"), sum_of(magnitude(x)), name="l1")
    return absolute + scaled(option(tv, x, name="tv"), variation(x, axis), name="tv")
