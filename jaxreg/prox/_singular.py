"""Prox of the penalties of singular values."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._matrix import Axes, on_matrices
from jaxreg._numerics import as_wide, checked_step
from jaxreg._singular import Map, map_singular_values
from jaxreg.prox._elementwise import soft
from jaxreg.prox._groups import cut_level


def nuclear(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """Singular value thresholding: U (Σ − step)₊ Vᵀ, the prox of `jaxreg.penalties.nuclear`.

    Args:
      x: a real floating-point array of rank >= 2, seen as a matrix as in `jaxreg.penalties.nuclear`.
      step: a number >= 0.
      out_axis, batch_axis: as in `jaxreg.penalties.nuclear`.

    Returns:
      An array of the shape and dtype of `x`, computed in at least float32. Its rank is low to rounding.

    Raises:
      TypeError, ValueError: as `l1` and `jaxreg.penalties.nuclear` do.

    >>> print(jaxreg.prox.nuclear(jnp.diag(jnp.array([3.0, -0.5])), 1.0).round(4))
    [[2. 0.]
     [0. 0.]]

    Source: Cai, Candès and Shen, A singular value thresholding algorithm for matrix completion, 2010.
    """
    return _mapped(soft, x, step, out_axis, batch_axis)


def spectral(x: ArrayLike, step: ArrayLike, *, out_axis: Axes = -1, batch_axis: Axes = ()) -> jax.Array:
    """The largest singular values cut down to one level, as `linf` does it. The prox of `jaxreg.penalties.spectral`.

    Args, dtypes and errors are those of `nuclear`.

    >>> print(jaxreg.prox.spectral(jnp.diag(jnp.array([3.0, 2.5])), 1.5).round(4))
    [[2. 0.]
     [0. 2.]]

    Source: Parikh and Boyd, Proximal algorithms, 2014.
    """
    return _mapped(_cut, x, step, out_axis, batch_axis)


def _cut(s: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.minimum(s, cut_level(s, step))


def _mapped(g: Map, x: ArrayLike, step: ArrayLike, out_axis: Axes, batch_axis: Axes) -> jax.Array:
    wide = as_wide(x)
    step = checked_step(step, wide, for_each=False)
    one = functools.partial(map_singular_values, g, parameter=step)
    return on_matrices(jax.vmap(one), wide, out_axis=out_axis, batch_axis=batch_axis).astype(jnp.asarray(x).dtype)
