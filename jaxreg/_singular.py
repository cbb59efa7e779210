"""Functions of the singular values of a matrix, with derivatives that hold where singular values meet or vanish.

With X = UΣVᵀ, a function g of the vector of singular values makes the matrix g(X) = U diag(g(σ)) Vᵀ: the gradient of
Σσ for g = 1, of σ₁ for g = e₁, and a prox where g is one. With E = Uᵀ dX V, the derivative along dX is, inside,
U (D₊ ∘ (E + Eᵀ)/2 + D₋ ∘ (E − Eᵀ)/2 + diag(dg)) Vᵀ with D₊ = (g_i − g_j)/(σ_i − σ_j) off the diagonal and
D₋ = (g_i + g_j)/(σ_i + σ_j). Outside of the spaces of U and V it is dX times g_i/σ_i. Where σ_i = σ_j or σ_i = 0 these
quotients have limits, which are derivatives of g. The derivative of `jnp.linalg.svd` has none there.

Where the difference of two singular values is rounding, so is its quotient. A continuous g takes the limit up to a
relative difference of √eps, which is as far from the exact derivative as the rounding of the quotient is there. A g
that jumps has no limit, but its values are exact, so that its quotients are too.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._numerics import largest, near_one, sum_of

Map = Callable[[jax.Array, jax.Array], jax.Array]

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def map_singular_values(g: Map, x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns U diag(g(σ, parameter)) Vᵀ of one matrix. `g` is continuous, and commutes with reorderings of σ."""
    return _mapped(g, float(np.sqrt(np.finfo(x.dtype).eps)), x, parameter)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _mapped(g: Map, near: float, x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns U diag(g(σ, parameter)) Vᵀ. Singular values are taken for equal up to the relative difference `near`."""
    u, s, vt = _svd(x)
    return _matmul(u * g(s, parameter)[None, :], vt)


@_mapped.defjvp
def _mapped_jvp(
    g: Map, near: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, parameter), (dx, dparameter) = primals, tangents
    u, s, vt = _svd(x)
    new = g(s, parameter)
    slopes = jax.jacfwd(g)(s, parameter)
    inner = _matmul(_matmul(u.T, dx), vt.T)
    along = jnp.diagonal(inner)
    change = _matmul(slopes, along) + jax.jvp(lambda parameter: g(s, parameter), (parameter,), (dparameter,))[1]

    own = jnp.diagonal(slopes)
    gaps = s[:, None] - s[None, :]
    gaps = jnp.where(jnp.abs(gaps) <= near * largest(s), jnp.zeros_like(gaps), gaps)
    plus = _quotient(new[:, None] - new[None, :], gaps, (own[:, None] + own[None, :]) / 2 - slopes)
    minus = _quotient(new[:, None] + new[None, :], s[:, None] + s[None, :], jnp.zeros_like(slopes))
    outside = _quotient(new, s, own)
    mixed = (plus * (inner + inner.T) + minus * (inner - inner.T)) / 2
    mixed = jnp.where(jnp.eye(len(s), dtype=bool), jnp.zeros_like(mixed), mixed) + jnp.diag(change)

    tangent = _matmul(_matmul(u, mixed), vt)
    right = _matmul(dx, vt.T) - _matmul(u, inner)  # dX V beyond the space of U
    left = _matmul(u.T, dx) - _matmul(inner, vt)  # and Uᵀ dX beyond that of V
    tangent += _matmul(right * outside[None, :], vt) + _matmul(u, outside[:, None] * left)
    return _matmul(u * new[None, :], vt), tangent


@jax.custom_jvp
def nuclear_norm(x: jax.Array) -> jax.Array:
    """Returns Σσ of one matrix."""
    return sum_of(_svd(x)[1])


@jax.custom_jvp
def spectral_norm(x: jax.Array) -> jax.Array:
    """Returns σ₁ of one matrix."""
    return largest(_svd(x)[1])


@nuclear_norm.defjvp
def _nuclear_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return nuclear_norm(x), sum_of(_gradient(_nonzero, x) * dx)


@spectral_norm.defjvp
def _spectral_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return spectral_norm(x), sum_of(_gradient(_mean_of_largest, x) * dx)


def _gradient(g: Map, x: jax.Array) -> jax.Array:
    """Returns U diag(g(σ)) Vᵀ for a `g` that jumps and does not depend on the scale of σ, which may overflow."""
    x, _, _ = near_one(x, (0, 1))
    return _mapped(g, 0.0, x, _tolerance(x))


def _svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # LAPACK may never return for a matrix that holds an infinity. It returns NaN for one that holds NaN.
    finite = jnp.isfinite(sum_of(jnp.where(jnp.isfinite(x), jnp.zeros_like(x), x)))
    u, s, vt = jnp.linalg.svd(jnp.where(finite, x, jnp.full_like(x, jnp.nan)), full_matrices=False)
    return u, s, vt


def _quotient(above: jax.Array, below: jax.Array, limit: jax.Array) -> jax.Array:
    """Returns `above / below`, and `limit` where `below` is 0."""
    vanishes = below == 0
    return jnp.where(vanishes, limit, above / jnp.where(vanishes, jnp.ones_like(below), below))


def _tolerance(x: jax.Array) -> jax.Array:
    """Returns the part of the largest singular value that is rounding."""
    return jnp.asarray(max(x.shape) * np.finfo(x.dtype).eps, x.dtype)


def _nonzero(s: jax.Array, tolerance: jax.Array) -> jax.Array:
    return (s > tolerance * largest(s)).astype(s.dtype)


def _mean_of_largest(s: jax.Array, tolerance: jax.Array) -> jax.Array:
    chosen = ((s > 0) & (s >= (1 - tolerance) * largest(s))).astype(s.dtype)
    return chosen / jnp.maximum(sum_of(chosen), 1)
