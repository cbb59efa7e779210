"""Proxes of the penalties of the differences of neighbors along an axis."""

import jax
from jax.typing import ArrayLike

from jaxreg._checks import checked_step, option
from jaxreg._names import public
from jaxreg._numerics import as_wide, in_dtype_of
from jaxreg._variation import smoothed
from jaxreg.prox._elementwise import soft


@public
def total_variation(x: ArrayLike, step: ArrayLike, *, axis: int = -1) -> jax.Array:
    """Returns the nearest signals of less variation: the prox of `jaxreg.penalties.total_variation`.

    Each is constant on parts. A part has the mean of x there, moved towards the level of its two neighbors by the step
    over its length. See `jaxreg.TotalVariation`.

    >>> print(jaxreg.prox.total_variation(jnp.array([1.0, 2.0, 7.0, 8.0]), 1.0))
    [2. 2. 7. 7.]
    """
    wide = as_wide(x)
    return in_dtype_of(x, smoothed(wide, checked_step(step, wide, for_each=False), axis))


@public
def fused_lasso(
    x: ArrayLike, step: ArrayLike, *, l1: ArrayLike = 1.0, tv: ArrayLike = 1.0, axis: int = -1
) -> jax.Array:
    """Returns the prox of `total_variation` by step·tv, then that of `l1` by step·l1.

    It is the prox of `jaxreg.penalties.fused_lasso`. See `jaxreg.FusedLasso`.

    >>> print(jaxreg.prox.fused_lasso(jnp.array([1.0, 2.0, 7.0, 8.0]), 1.0, l1=3.0))
    [0. 0. 4. 4.]
    """
    wide = as_wide(x)
    step, l1 = checked_step(step, wide, for_each=False), option(l1, wide, name="l1")
    return in_dtype_of(x, soft(smoothed(wide, step * option(tv, wide, name="tv"), axis), step * l1))
