"""Penalties that are sums over single weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import array_option, option
from jaxreg._names import public
from jaxreg._numerics import as_wide, magnitude, scaled, sum_of


@public
def l1(x: ArrayLike) -> jax.Array:
    """Returns the sum of absolute values, Σ|x|.

    The gradient is sign(x), and 0 at 0. See `jaxreg.L1`.

    >>> float(jaxreg.penalties.l1(jnp.array([1.0, -2.0, 0.0])))
    3.0
    """
    return sum_of(magnitude(as_wide(x)))


@public
def weighted_l1(x: ArrayLike, *, weights: ArrayLike) -> jax.Array:
    """Returns the sum of weighted absolute values, Σ w|x|, for weights w >= 0: a number, or an array of the shape of x.

    The gradient is w · sign(x), and 0 at 0. See `jaxreg.AdaptiveL1`.

    >>> float(jaxreg.penalties.weighted_l1(jnp.array([1.0, -2.0]), weights=jnp.array([3.0, 0.5])))
    4.0
    """
    x = as_wide(x)
    return sum_of(array_option(weights, x, name="weights", or_number=True) * magnitude(x))


@public
def l2(x: ArrayLike) -> jax.Array:
    """Returns the sum of squares, Σx². As in Keras, there is no ½.

    The gradient is 2x. See `jaxreg.L2`.

    >>> float(jaxreg.penalties.l2(jnp.array([1.0, -2.0, 0.0])))
    5.0
    """
    return sum_of(jnp.square(as_wide(x)))


@public
def l1_l2(x: ArrayLike, *, l1: ArrayLike = 1.0, l2: ArrayLike = 1.0) -> jax.Array:
    """Returns the elastic net, l1 · Σ|x| + l2 · Σx², for numbers `l1` and `l2` >= 0.

    The gradient is l1 · sign(x) + 2 · l2 · x, and 0 at 0. See `jaxreg.L1L2`.

    >>> float(jaxreg.penalties.l1_l2(jnp.array([1.0, -2.0, 0.0]), l1=1.0, l2=0.5))
    5.5
    """
    x = as_wide(x)
    absolute = scaled(option(l1, x, name="l1"), sum_of(magnitude(x)), name="l1")
    # Each square has its weight, so that none overflows where the weighted one does not.
    return absolute + sum_of(option(l2, x, name="l2") * x * x)


@public
def l0(x: ArrayLike) -> jax.Array:
    """Returns the number of weights that are not exactly zero, Σ[x ≠ 0].

    The gradient is 0 everywhere, so gradient descent does not see this penalty. See `jaxreg.L0`.

    >>> float(jaxreg.penalties.l0(jnp.array([1.0, -2.0, 0.0])))
    2.0
    """
    x = as_wide(x)
    counted = (x != 0).astype(x.dtype)
    return sum_of(jnp.where(jnp.isnan(x), jax.lax.stop_gradient(x), counted))


@public
def l_half(x: ArrayLike) -> jax.Array:
    """Returns the sum of square roots, Σ|x|^½. It is not convex.

    The gradient ½ sign(x)/√|x| grows without bound towards 0, and is 0 at 0 itself. See `jaxreg.LHalf`.

    >>> float(jaxreg.penalties.l_half(jnp.array([4.0, -9.0, 0.0])))
    5.0
    """
    x = magnitude(as_wide(x))
    small = x < np.finfo(x.dtype).tiny  # hardware may take the root of a denormal number for that of 0
    return sum_of(jnp.where(small, jnp.zeros_like(x), jnp.sqrt(jnp.where(small, jnp.ones_like(x), x))))


@public
def l_two_thirds(x: ArrayLike) -> jax.Array:
    """Returns the sum of the powers Σ|x|^⅔. It is not convex.

    The gradient ⅔ sign(x)/|x|^⅓ grows without bound towards 0, and is 0 at 0 itself. See `jaxreg.LTwoThirds`.

    >>> float(jaxreg.penalties.l_two_thirds(jnp.array([8.0, -1.0, 0.0])))
    5.0
    """
    x = magnitude(as_wide(x))
    small = x < np.finfo(x.dtype).tiny  # hardware may take the root of a denormal number for that of 0
    return sum_of(jnp.where(small, jnp.zeros_like(x), jnp.square(jnp.cbrt(jnp.where(small, jnp.ones_like(x), x)))))


@public
def huber(x: ArrayLike, *, delta: ArrayLike = 1.0) -> jax.Array:
    """Returns the Huber function: the sum of x²/(2δ) where |x| ≤ δ, and of |x| − δ/2 beyond, for a number δ > 0.

    The gradient is x/δ, clipped to [−1, 1]. See `jaxreg.Huber`.

    >>> float(jaxreg.penalties.huber(jnp.array([0.5, -2.0, 0.0])))
    1.625
    """
    x = magnitude(as_wide(x))
    delta = option(delta, x, name="delta", above=0.0)
    inside = x <= delta
    near = jnp.where(inside, x, jnp.zeros_like(x))
    return sum_of(jnp.where(inside, near * (near / delta) / 2, x - delta / 2))


@public
def mcp(x: ArrayLike, *, lam: ArrayLike = 1.0, gamma: ArrayLike = 3.0) -> jax.Array:
    """Returns the minimax concave penalty: the sum of λ|x| − x²/(2γ) where |x| ≤ γλ, and of γλ²/2 beyond.

    The number λ is >= 0, and γ > 0. The gradient is sign(x)(λ − |x|/γ)₊, and 0 at 0. See `jaxreg.MCP`.

    >>> float(jaxreg.penalties.mcp(jnp.array([1.0, -5.0, 0.0]), gamma=2.0))
    1.75
    """
    x = magnitude(as_wide(x))
    return sum_of(mcp_of(x, option(lam, x, name="lam"), option(gamma, x, name="gamma", above=0.0)))


def mcp_of(size: jax.Array, lam: jax.Array, gamma: jax.Array) -> jax.Array:
    """Returns the minimax concave penalty of each of some sizes >= 0."""
    inside = jnp.minimum(size, gamma * lam)
    return inside * (lam - inside / gamma / 2)


@public
def scad(x: ArrayLike, *, lam: ArrayLike = 1.0, a: ArrayLike = 3.7) -> jax.Array:
    """Returns the SCAD penalty: the sum of λ|x| up to λ, of a parabola up to aλ, and of λ²(a + 1)/2 beyond.

    The number λ is >= 0, and a > 1. The gradient is sign(x) times λ up to λ, (aλ − |x|)/(a − 1) up to aλ and 0 beyond.
    It is 0 at 0. See `jaxreg.SCAD`.

    >>> float(jaxreg.penalties.scad(jnp.array([1.0, -5.0, 0.0]), a=3.0))
    3.0
    """
    x = magnitude(as_wide(x))
    return sum_of(scad_of(x, option(lam, x, name="lam"), option(a, x, name="a", above=1.0)))


def scad_of(size: jax.Array, lam: jax.Array, a: jax.Array) -> jax.Array:
    """Returns the SCAD penalty of each of some sizes >= 0."""
    beyond = jnp.clip(size - lam, 0, (a - 1) * lam)
    return lam * jnp.minimum(size, lam) + beyond * (lam - beyond / (a - 1) / 2)


@public
def log_sum(x: ArrayLike, *, epsilon: ArrayLike = 1.0) -> jax.Array:
    """Returns the sum of logarithms, Σ log(1 + |x|/ε), for a number ε > 0. It is not convex.

    The gradient is sign(x)/(ε + |x|), and 0 at 0. See `jaxreg.LogSum`.

    >>> print(f"{jaxreg.penalties.log_sum(jnp.array([1.0, -3.0, 0.0])):.4f}")
    2.0794
    """
    x = magnitude(as_wide(x))
    epsilon = option(epsilon, x, name="epsilon", above=0.0)
    return sum_of(_log_of_ratio(x, epsilon))


@jax.custom_jvp
def _log_of_ratio(x: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Returns log(1 + x/ε) for x >= 0. Its derivatives overflow only where they do not fit."""
    # The quotient may overflow where its logarithm does not. There ε is nothing beside x.
    huge = x > epsilon * 1e30
    near = jnp.log1p(jnp.where(huge, jnp.zeros_like(x), x) / epsilon)
    far = jnp.log(jnp.where(huge, x, jnp.ones_like(x))) - jnp.log(epsilon)
    return jnp.where(huge, far, near)


@_log_of_ratio.defjvp
def _log_of_ratio_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, epsilon), (dx, depsilon) = primals, tangents
    reach = x + epsilon
    return _log_of_ratio(x, epsilon), dx / reach - depsilon * (x / reach / epsilon)


@public
def anchor(x: ArrayLike, *, target: ArrayLike, fisher: ArrayLike = 1.0) -> jax.Array:
    """Returns half the squared distance from a target, ½ Σ F(x − w₀)². The gradient is F(x − w₀).

    It pulls towards given weights, so it needs an array that no regularizer has room for. With the initial weights as
    w₀ and F = 1 it is L2-Init, with the pretrained weights L2-SP, and with the diagonal of the Fisher information as F
    it is elastic weight consolidation.

    Args:
      x: a real floating-point array of any shape.
      target: w₀, an array of the shape of `x`.
      fisher: F, a number >= 0, or an array of the shape of `x`.

    Returns:
      A scalar, in float64 for a float64 `x` and in float32 for every narrower one.

    Raises:
      TypeError, ValueError: `target` or `fisher` is not made of real numbers, or has another shape.

    >>> x, pretrained = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
    >>> float(jaxreg.penalties.anchor(x, target=pretrained))
    2.0

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017; Li, Grandvalet and Davoine,
    Explicit inductive bias for transfer learning with convolutional networks, 2018.
    """
    x = as_wide(x)
    difference = x - array_option(target, x, name="target")
    # In this order a product overflows only where the result does.
    return sum_of(array_option(fisher, x, name="fisher", or_number=True) * (difference / 2) * difference)
