"""Functions of the singular values of a matrix, with derivatives that hold where singular values meet or vanish.

With X = UΣVᵀ, a function g of the vector of singular values makes the matrix g(X) = U diag(g(σ)) Vᵀ: the gradient of
Σσ for g = 1, of σ₁ for g = e₁, and a prox where g is one. With E = Uᵀ dX V, the derivative along dX is, inside,
U (D₊ ∘ (E + Eᵀ)/2 + D₋ ∘ (E − Eᵀ)/2 + diag(dg)) Vᵀ with D₊ = (g_i − g_j)/(σ_i − σ_j) off the diagonal and
D₋ = (g_i + g_j)/(σ_i + σ_j). Outside of the spaces of U and V it is dX times g_i/σ_i. Where σ_i = σ_j or σ_i = 0 these
quotients have limits, which are derivatives of g. The derivative of `jnp.linalg.svd` has none there.

Where the difference of two singular values is rounding, so is its quotient. A continuous g takes the limit up to a
relative difference of √eps, which is as far from the exact derivative as the rounding of the quotient is there. A g
that jumps has no limit, but its values are exact, so that its quotients are too.

On a mesh, matrices are dealt out whole for this. The largest singular value of matrices that are divided comes from
subspace iteration.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._blocks import brought, crossed, orthonormal, outer, product, sent_back, squares, started
from jaxreg._matrix import Layout, Matrices
from jaxreg._numerics import Over, for_lapack, largest, near_one, sum_of, ulps
from jaxreg._shards import Names, somewhere, total
from jaxreg._spread import Unit, dealt, value_of_shards

Map = Callable[[jax.Array, jax.Array], jax.Array]
State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# Subspace iteration follows so many singular vectors. After the first is at rest, to a few units in the last place, it
# goes on for some steps, in which the error falls by the ratio of squared singular values to their power.
FOLLOWED, FURTHER_STEPS, MOST_STEPS = 8, 10, 300

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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _projected(g: Map, bound: Map, units: float, x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns U diag(g(σ, parameter)) Vᵀ, and `x` itself where g moves no singular value by more than rounding.

    That is a number of units in the last place of what `bound` returns, in multiples of those of the dtype of `x`.
    """
    u, s, vt = _svd(x)
    new = g(s, parameter)
    return jnp.where(_is_kept(s, new, bound, units, parameter), x, _matmul(u * new[None, :], vt))


def _is_kept(s: jax.Array, new: jax.Array, bound: Map, units: float, parameter: jax.Array) -> jax.Array:
    return jnp.all(jnp.abs(new - s) <= ulps(units, bound(s, parameter), s.dtype))


@_projected.defjvp
def _projected_jvp(
    g: Map, bound: Map, units: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, parameter), (dx, _) = primals, tangents
    _, s, _ = _svd(x)
    near = float(np.sqrt(np.finfo(x.dtype).eps))
    new, change = jax.jvp(functools.partial(_mapped, g, near), primals, tangents)
    is_kept = _is_kept(s, g(s, parameter), bound, units, parameter)
    return jnp.where(is_kept, x, new), jnp.where(is_kept, dx, change)


@jax.custom_jvp
def nuclear_norm(x: jax.Array) -> jax.Array:
    """Returns Σσ of one matrix."""
    return sum_of(_svd(x)[1])


@jax.custom_jvp
def spectral_norm(x: jax.Array) -> jax.Array:
    """Returns σ₁ of one matrix."""
    return largest(_svd(x)[1])


def rank_of_vector(x: jax.Array) -> jax.Array:
    """Returns the stable rank of a matrix of one row or one column, without the rounding of a decomposition."""
    is_zero = largest(jnp.abs(x)) == 0
    x, _, _ = near_one(jnp.where(is_zero, jnp.zeros_like(x), x), (0, 1))
    return jnp.where(is_zero, jnp.zeros((), x.dtype), 1 + 0 * sum_of(jnp.square(x)))  # a NaN shows, in derivatives too


def stable_rank(x: jax.Array) -> jax.Array:
    """Returns Σσ²/σ₁² of one matrix, and 0 for a zero matrix."""
    is_zero = largest(jnp.abs(x)) == 0
    x, _, _ = near_one(jnp.where(is_zero, jnp.zeros_like(x), x), (0, 1))  # so no derivative meets the scale of zeros
    squares, most = sum_of(jnp.square(x)), jnp.square(spectral_norm(x))
    return jnp.where(is_zero, jnp.zeros_like(most), squares / jnp.where(is_zero, jnp.ones_like(most), most))


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
    u, s, vt = jnp.linalg.svd(for_lapack(x), full_matrices=False)
    return u, s, vt


def _quotient(above: jax.Array, below: jax.Array, limit: jax.Array) -> jax.Array:
    """Returns `above / below`, and `limit` where `below` is 0."""
    vanishes = below == 0
    return jnp.where(vanishes, limit, above / jnp.where(vanishes, jnp.ones_like(below), below))


def _tolerance(x: jax.Array) -> jax.Array:
    """Returns the part of the largest singular value that is rounding."""
    return jnp.asarray(_tolerance_of(x.shape, x.dtype), x.dtype)


def _tolerance_of(shape: tuple[int, ...], dtype: Any) -> float:
    return float(max(shape) * np.finfo(dtype).eps)


def _nonzero(s: jax.Array, tolerance: jax.Array) -> jax.Array:
    return (s > tolerance * largest(s)).astype(s.dtype)


def _mean_of_largest(s: jax.Array, tolerance: jax.Array) -> jax.Array:
    chosen = ((s > 0) & (s >= (1 - tolerance) * largest(s))).astype(s.dtype)
    return chosen / jnp.maximum(sum_of(chosen), 1)


@dataclasses.dataclass(frozen=True)
class SumOverMatrices:
    """The penalty of matrices that is the sum of a function of each, where they may be divided."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, matrices: Matrices) -> jax.Array:
        x, layout = matrices
        if layout.is_divided:
            return value_of_shards(x, layout, _SumOfShards(self.function))
        return sum_of(jax.vmap(self.function, in_axes=layout.batch)(x))


@dataclasses.dataclass(frozen=True)
class _SumOfShards:
    """The job of `SumOverMatrices` for a device, which has whole matrices."""

    function: Callable[[jax.Array], jax.Array]

    unit: ClassVar[Unit] = "matrices"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> tuple[jax.Array, Any]:
        def value(x: jax.Array) -> jax.Array:
            return sum_of(jax.vmap(self.function, in_axes=layout.batch)(x))

        return jax.value_and_grad(value)(x) if graded else (value(x), None)


@dataclasses.dataclass(frozen=True)
class MapSingularValues:
    """The function of matrices, which may be divided, and a parameter, that maps the singular values of each."""

    g: Map

    def __call__(self, matrices: Matrices, parameter: jax.Array) -> jax.Array:
        x, layout = matrices
        found = dealt(x, layout, "matrices")
        one = functools.partial(map_singular_values, self.g, parameter=parameter)
        return found.back(jax.vmap(one, in_axes=layout.batch, out_axes=layout.batch)(found.array))


@dataclasses.dataclass(frozen=True)
class ProjectSingularValues:
    """The projection of matrices, which may be divided, by a map of the singular values of each.

    A matrix whose singular values the map moves by rounding alone is returned as it is.

    Attributes:
      g: the map of the singular values, with a parameter.
      bound: the number beside which rounding is judged, from the same.
      coarser: how many times as far apart the numbers of the user's dtype are as those that are computed with.
    """

    g: Map
    bound: Map
    coarser: float

    def __call__(self, matrices: Matrices, parameter: jax.Array) -> jax.Array:
        x, layout = matrices
        found = dealt(x, layout, "matrices")
        units = 4 * self.coarser * float(np.sqrt(layout.sizes[1] * layout.sizes[2]))
        one = functools.partial(_projected, self.g, self.bound, units)
        return found.back(
            jax.vmap(lambda x: one(x, parameter), in_axes=layout.batch, out_axes=layout.batch)(found.array)
        )


@dataclasses.dataclass(frozen=True)
class LargestSingularValues:
    """The penalty of matrices that is the sum of their largest singular values, where they may be divided."""

    def __call__(self, matrices: Matrices) -> jax.Array:
        x, layout = matrices
        if layout.kinds[1].over or layout.kinds[2].over:
            return value_of_shards(x, layout, _LargestOfShards())
        return SumOverMatrices(spectral_norm)(matrices)


@dataclasses.dataclass(frozen=True)
class _LargestOfShards:
    """The job of `LargestSingularValues` for a device that has parts of matrices."""

    unit: ClassVar[Unit] = "parts"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> tuple[jax.Array, Any]:
        return _largest_of_shards(x, layout)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest_of_shards(x: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Returns Σσ₁ over all matrices, and its gradient, by subspace iteration.

    Where that does not converge, or more singular values meet than it follows, matrices are gathered and decomposed.
    """
    is_found, value, gradient = _by_iteration(x, layout)
    return lax.cond(
        is_found,
        lambda value, gradient, x: (value, gradient),
        lambda value, gradient, x: _by_decomposition(x, layout),
        *(value, gradient, x),
    )


@_largest_of_shards.defjvp
def _largest_of_shards_jvp(
    layout: Layout, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    changes = jax.jvp(lambda x: _by_decomposition(x, layout), primals, tangents)[1]
    return _largest_of_shards(*primals, layout), changes


def _by_decomposition(x: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    found = dealt(x, layout, "matrices")
    value, gradient = _SumOfShards(spectral_norm)(found.array, layout, (), True)
    return total(value, layout.names + layout.spare), found.back(gradient)


def _by_iteration(x: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns whether the iteration has converged, Σσ₁, and its gradient.

    A few vectors are multiplied by XᵀX again and again, and made orthonormal. Only these are added up over devices.
    """
    _, rows, columns = layout.kinds
    eps = float(np.finfo(x.dtype).eps)
    x, factor = brought(x, layout)
    followed = min(FOLLOWED, *layout.sizes[1:])

    def seen(v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns right singular vectors, left ones times σ, and σ², as far as the subspace shows them."""
        v = orthonormal(v, columns.over)
        u = product(x, v, columns.over)
        s, q = squares(u, rows.over)
        return product(v, q), product(u, q), s

    def step(state: State) -> State:
        v, count, further, _ = state
        v, u, s = seen(v)
        following = crossed(x, u, rows.over)
        apart = jnp.sqrt(sum_of(jnp.square(following - v * s)[:, :, -1:], Over((1,), columns.over)))
        goes_on = somewhere(jnp.any(apart > 16 * eps * s[:, :, -1:]))
        is_finite = ~somewhere(jnp.any(~jnp.isfinite(apart)))
        return following, count + 1, jnp.where(goes_on, further, further + 1), is_finite

    def goes_on(state: State) -> jax.Array:
        _, count, further, is_finite = state
        return (count < MOST_STEPS) & (further < FURTHER_STEPS) & is_finite

    start, none = started(x, layout, followed), jnp.zeros((), jnp.int32)
    v, _, further, is_finite = lax.while_loop(goes_on, step, (start, none, none, jnp.ones((), bool)))
    v, u, s = seen(v)
    highest = s[:, :, -1:]
    chosen = (s > 0) & (s >= jnp.square(1 - _tolerance_of(layout.sizes[1:], x.dtype)) * highest)
    more_may_meet = somewhere(jnp.any(jnp.all(chosen, axis=2))) if followed < min(layout.sizes[1:]) else False
    is_found = is_finite & (further >= FURTHER_STEPS) & ~jnp.asarray(more_may_meet)
    value = sum_of(factor * jnp.sqrt(highest))
    count = jnp.maximum(sum_of(chosen.astype(x.dtype), 2), 1)
    share = jnp.where(chosen, 1 / (jnp.sqrt(jnp.where(chosen, s, jnp.ones_like(s))) * count), jnp.zeros_like(s))
    return is_found, total(value, layout.names + layout.spare), sent_back(outer(u * share, v), layout)
