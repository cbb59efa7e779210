"""Sums over the Gram matrix of normalized rows."""

import jax
import jax.numpy as jnp

from jaxreg._numerics import magnitude, unit_rows


def mean_absolute_cosine(x: jax.Array) -> jax.Array:
    """The mean of |cos(x_i, x_j)| over the pairs i != j of the rows of one matrix.

    A matrix of fewer than two rows has no pair, and its mean is 0.
    """
    n = x.shape[0]
    if n < 2:
        return jnp.zeros((), x.dtype)
    units = unit_rows(x)
    gram = jnp.matmul(units, units.T, precision=jax.lax.Precision.HIGHEST)
    pairs = jnp.where(jnp.eye(n, dtype=bool), jnp.zeros_like(gram), magnitude(gram))
    return jnp.sum(pairs) / (n * (n - 1))
