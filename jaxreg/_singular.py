"""Functions of the singular values of a matrix, with derivatives that hold where singular values meet or vanish.

With X = UΣVᵀ, a function g of the vector of singular values makes the matrix g(X) = U diag(g(σ)) Vᵀ: the gradient of
Σσ for g = 1, of σ₁ for g = e₁, a prox for a prox. With E = Uᵀ dX V its derivative along dX is, inside,
U (D₊ ∘ (E + Eᵀ)/2 + D₋ ∘ (E − Eᵀ)/2 + diag(dg)) Vᵀ with D₊ = (g_i − g_j)/(σ_i − σ_j) off the diagonal and
D₋ = (g_i + g_j)/(σ_i + σ_j), and outside of the spaces of U and V, dX times g_i/σ_i. Where σ_i = σ_j or σ_i = 0 these
quotients have limits, which are derivatives of g; those of `jnp.linalg.svd` have none.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Map = Callable[[jax.Array, jax.Array], jax.Array]

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def map_singular_values(g: Map, x: jax.Array, parameter: jax.Array) -> jax.Array:
    """U diag(g(σ, parameter)) Vᵀ of one matrix; `g` must not care for the order of the singular values."""
    u, s, vt = _svd(x)
    return _matmul(u * g(s, parameter)[None, :], vt)


@map_singular_values.defjvp
def _map_jvp(
    g: Map, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, parameter), (dx, dparameter) = primals, tangents
    u, s, vt = _svd(x)
    new = g(s, parameter)
    slopes = jax.jacfwd(g)(s, parameter)
    inner = _matmul(_matmul(u.T, dx), vt.T)
    along = jnp.diagonal(inner)
    change = _matmul(slopes, along) + jax.jvp(lambda parameter: g(s, parameter), (parameter,), (dparameter,))[1]

    own = jnp.diagonal(slopes)
    plus = _quotient(new[:, None] - new[None, :], s[:, None] - s[None, :], own[:, None] - slopes)
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
    """Σσ of one matrix."""
    return jnp.sum(_svd(x)[1])


@jax.custom_jvp
def spectral_norm(x: jax.Array) -> jax.Array:
    """σ₁ of one matrix."""
    return jnp.max(_svd(x)[1], initial=0.0)


@nuclear_norm.defjvp
def _nuclear_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return nuclear_norm(x), jnp.sum(map_singular_values(_nonzero, x, _tolerance(x)) * dx)


@spectral_norm.defjvp
def _spectral_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return spectral_norm(x), jnp.sum(map_singular_values(_largest, x, _tolerance(x)) * dx)


def _svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vt


def _quotient(above: jax.Array, below: jax.Array, limit: jax.Array) -> jax.Array:
    """`above / below`, and `limit` where `below` is 0."""
    vanishes = below == 0
    return jnp.where(vanishes, limit, above / jnp.where(vanishes, jnp.ones_like(below), below))


def _tolerance(x: jax.Array) -> jax.Array:
    """The part of the largest singular value that is rounding."""
    return jnp.asarray(max(x.shape) * np.finfo(x.dtype).eps, x.dtype)


def _nonzero(s: jax.Array, tolerance: jax.Array) -> jax.Array:
    return (s > tolerance * jnp.max(s, initial=0.0)).astype(s.dtype)


def _largest(s: jax.Array, tolerance: jax.Array) -> jax.Array:
    largest = jnp.max(s, initial=0.0)
    chosen = ((s > 0) & (s >= (1 - tolerance) * largest)).astype(s.dtype)
    return chosen / jnp.maximum(jnp.sum(chosen), 1)
