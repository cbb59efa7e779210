"""Proxes of the penalties that are sums over single weights."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._checks import array_option, checked_step, option
from jaxreg._names import public
from jaxreg._numerics import as_wide, in_dtype_of, root


def soft(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Returns sign(x)(|x| − threshold)₊, exactly 0 up to the threshold."""
    return x - jnp.clip(x, -threshold, threshold)


def _hard(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Returns 0 up to a threshold > 0, and `x` beyond."""
    hard = jnp.where((threshold > 0) & (jnp.abs(x) <= threshold), jnp.zeros_like(x), x)
    return jnp.where(jnp.isnan(threshold), threshold, hard)


@public
def l1(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns sign(x)(|x| − step)₊: soft thresholding, the prox of `jaxreg.penalties.l1`. See `jaxreg.L1`.

    >>> jaxreg.prox.l1(jnp.array([3.0, -0.5, -2.0]), 1.0)
    Array([ 2.,  0., -1.], dtype=float32)
    """
    wide = as_wide(x)
    return in_dtype_of(x, soft(wide, checked_step(step, wide)))


@public
def weighted_l1(x: ArrayLike, step: ArrayLike, *, weights: ArrayLike) -> jax.Array:
    """Returns sign(x)(|x| − step·w)₊, the prox of `jaxreg.penalties.weighted_l1`. See `jaxreg.AdaptiveL1`.

    >>> jaxreg.prox.weighted_l1(jnp.array([3.0, -2.0]), 1.0, weights=jnp.array([4.0, 0.5]))
    Array([ 0. , -1.5], dtype=float32)
    """
    wide = as_wide(x)
    return in_dtype_of(
        x, soft(wide, checked_step(step, wide) * array_option(weights, wide, name="weights", or_number=True))
    )


@public
def l2(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns x/(1 + 2·step): shrinkage, the prox of `jaxreg.penalties.l2`. See `jaxreg.L2`.

    >>> jaxreg.prox.l2(jnp.array([3.0, -0.75]), 0.25)
    Array([ 2. , -0.5], dtype=float32)
    """
    wide = as_wide(x)
    return in_dtype_of(x, wide / (1 + 2 * checked_step(step, wide)))


@public
def l1_l2(x: ArrayLike, step: ArrayLike, *, l1: ArrayLike = 1.0, l2: ArrayLike = 1.0) -> jax.Array:
    """Returns soft(x, step·l1)/(1 + 2·step·l2), the prox of `jaxreg.penalties.l1_l2`. See `jaxreg.L1L2`.

    >>> jaxreg.prox.l1_l2(jnp.array([3.0, -0.5]), 1.0, l2=0.5)
    Array([1., 0.], dtype=float32)
    """
    wide = as_wide(x)
    step, l1, l2 = checked_step(step, wide), option(l1, wide, name="l1"), option(l2, wide, name="l2")
    return in_dtype_of(x, soft(wide, step * l1) / (1 + 2 * step * l2))


@public
def l0(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns 0 where |x| ≤ √(2·step), and x beyond: hard thresholding, the prox of `jaxreg.penalties.l0`.

    See `jaxreg.L0`.

    >>> jaxreg.prox.l0(jnp.array([3.0, -0.5, -2.0]), 0.5)
    Array([ 3.,  0., -2.], dtype=float32)
    """
    wide = as_wide(x)
    return in_dtype_of(x, _hard(wide, math.sqrt(2) * root(checked_step(step, wide))))


@public
def l_half(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns 0 where |x| ≤ 1.5·step^⅔, else ⅔x(1 + cos(⅔π − ⅔φ)), the prox of `jaxreg.penalties.l_half`.

    The angle φ = arccos((step/4)(|x|/3)^(−3/2)) gives a root of a cubic equation. See `jaxreg.LHalf`.

    >>> print(jaxreg.prox.l_half(jnp.array([3.0, -1.5]), 1.0).round(4))
    [2.6955 0.    ]
    """
    wide = as_wide(x)
    size, step = jnp.abs(wide), checked_step(step, wide)
    positive = step > 0
    scale = jnp.where(positive, step, jnp.ones_like(step)) ** (2 / 3)
    zero = positive & (size <= 1.5 * scale)
    # Beyond, the difference is less than rounding, and the quotient may overflow.
    near = positive & ~zero & (size <= 1e12 * scale)
    angle = jnp.arccos(0.25 * (jnp.where(near, size, 3 * scale) / (3 * scale)) ** -1.5)
    factor = 2 / 3 * (1 + jnp.cos(2 / 3 * (math.pi - angle)))
    result = jnp.where(zero, jnp.zeros_like(wide), jnp.where(near, wide * factor, wide))
    return in_dtype_of(x, jnp.where(jnp.isnan(step), step, result))


@public
def l_two_thirds(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Returns 0 where |x| ≤ 2(⅔·step)^¾, else sign(x)·t³ with the largest root t of t⁴ − |x|t + ⅔·step = 0.

    It is the prox of `jaxreg.penalties.l_two_thirds`. The root of the quartic equation comes from a root w of a cubic
    one, a hyperbolic cosine. See `jaxreg.LTwoThirds`.

    >>> print(jaxreg.prox.l_two_thirds(jnp.array([3.0, -1.0]), 1.0).round(4))
    [2.5094 0.    ]
    """
    wide = as_wide(x)
    size, step = jnp.abs(wide), checked_step(step, wide)
    positive = step > 0
    # In this unit the equation is t⁴ − zt + 1 = 0, and the threshold is z = 2.
    unit = (2 / 3) ** 0.75 * jnp.where(positive, step, jnp.ones_like(step)) ** 0.75
    zero = positive & (size <= 2 * unit)
    # Beyond, the difference is less than rounding, and the square may overflow.
    near = positive & ~zero & (size <= 1e12 * unit)
    z = jnp.where(near, size, 3 * unit) / unit
    w = 4 / math.sqrt(3) * jnp.cosh(jnp.arccosh(3 * math.sqrt(3) / 16 * z * z) / 3)
    t = (jnp.sqrt(w) + jnp.sqrt(2 * z / jnp.sqrt(w) - w)) / 2
    # Since t³ = z − 1/t, which rounds least.
    result = jnp.where(zero, jnp.zeros_like(wide), jnp.where(near, wide - jnp.sign(wide) * unit / t, wide))
    return in_dtype_of(x, jnp.where(jnp.isnan(step), step, result))


@public
def huber(x: ArrayLike, step: ArrayLike, *, delta: ArrayLike = 1.0) -> jax.Array:
    """Returns x·δ/(δ + step) where |x| ≤ δ + step, else x − step·sign(x), the prox of `jaxreg.penalties.huber`.

    It makes no weight zero. See `jaxreg.Huber`.

    >>> jaxreg.prox.huber(jnp.array([3.0, -1.0]), 1.0)
    Array([ 2. , -0.5], dtype=float32)
    """
    wide = as_wide(x)
    step, delta = checked_step(step, wide), option(delta, wide, name="delta", above=0.0)
    inside = jnp.abs(wide) <= delta + step
    return in_dtype_of(x, jnp.where(inside, wide * (delta / (delta + step)), wide - step * jnp.sign(wide)))


@public
def mcp(x: ArrayLike, step: ArrayLike, *, lam: ArrayLike = 1.0, gamma: ArrayLike = 3.0) -> jax.Array:
    """Returns soft(x, step·λ)/(1 − step/γ) where |x| ≤ γλ, else x: firm thresholding, the prox of `penalties.mcp`.

    From step = γ on the objective is concave up to γλ. Then the result is 0 up to λ√(step·γ), and x beyond. See
    `jaxreg.MCP`.

    >>> jaxreg.prox.mcp(jnp.array([5.0, 2.0, -0.5]), 1.0, gamma=2.0)
    Array([5., 2., 0.], dtype=float32)
    """
    wide = as_wide(x)
    step, lam = checked_step(step, wide), option(lam, wide, name="lam")
    gamma = option(gamma, wide, name="gamma", above=0.0)
    is_firm = step < gamma
    slope = 1 - jnp.where(is_firm, step, jnp.zeros_like(step)) / gamma
    firm = jnp.where(jnp.abs(wide) <= gamma * lam, soft(wide, step * lam) / slope, wide)
    return in_dtype_of(x, jnp.where(is_firm, firm, _hard(wide, lam * root(step) * root(gamma))))


@public
def scad(x: ArrayLike, step: ArrayLike, *, lam: ArrayLike = 1.0, a: ArrayLike = 3.7) -> jax.Array:
    """Returns soft(x, step·λ) up to (1 + step)λ, ((a−1)x − sign(x)·aλ·step)/(a−1−step) up to aλ, and x beyond.

    It is the prox of `jaxreg.penalties.scad`. From step = a − 1 on the objective is concave between λ and aλ, and the
    better of the points on its two sides is taken. See `jaxreg.SCAD`.

    >>> jaxreg.prox.scad(jnp.array([5.0, 2.5, -1.5]), 1.0, a=3.0)
    Array([ 5. ,  2. , -0.5], dtype=float32)
    """
    wide = as_wide(x)
    step, lam = checked_step(step, wide), option(lam, wide, name="lam")
    a = option(a, wide, name="a", above=1.0)
    size, convex = jnp.abs(wide), step < a - 1
    start = soft(wide, step * lam)
    pull = jnp.where(convex, step, jnp.zeros_like(step))
    between = wide + pull * (wide - jnp.sign(wide) * a * lam) / (a - 1 - pull)  # exactly x for a step of 0
    joined = jnp.where(size <= (1 + step) * lam, start, jnp.where(size <= a * lam, between, wide))

    low = jnp.minimum(jnp.abs(start), lam)
    high = jnp.maximum(size, a * lam)
    # The gain of the higher point in the objective, over the square of a size at which nothing overflows.
    unit = jnp.maximum(low, jnp.where(jnp.isfinite(high), high, jnp.ones_like(high)))
    unit = jnp.where(unit > 0, unit, jnp.ones_like(unit))
    saved = ((size - low) / unit) ** 2 - (jnp.maximum(a * lam - size, 0) / unit) ** 2
    gain = saved / 2 + step * (lam / unit) * (low / unit - (lam / unit) * (a + 1) / 2)
    split = jnp.sign(wide) * jnp.where(gain > 0, high, low)
    return in_dtype_of(x, jnp.where(convex, joined, split))


@public
def log_sum(x: ArrayLike, step: ArrayLike, *, epsilon: ArrayLike = 1.0) -> jax.Array:
    """Returns the better of 0 and sign(x)·½(|x| − ε + √((|x| + ε)² − 4·step)), the prox of `penalties.log_sum`.

    See `jaxreg.LogSum`.

    >>> print(jaxreg.prox.log_sum(jnp.array([3.0, -0.5]), 1.0).round(4))
    [2.7321 0.    ]
    """
    wide = as_wide(x)
    step, epsilon = checked_step(step, wide), option(epsilon, wide, name="epsilon", above=0.0)
    reach = jnp.abs(wide) + epsilon
    ratio = jax.lax.stop_gradient(4 * (step / reach) / reach)  # no square, which could overflow
    inside = (step > 0) & (ratio < 1)
    # Outside, the result is 0 or x. Numbers that are harmless there keep its derivatives finite.
    size, near = (jnp.where(inside, value, jnp.ones_like(wide)) for value in (jnp.abs(wide), epsilon))
    pull = jnp.where(inside, step, jnp.zeros_like(wide))
    reach = size + near
    spread = reach * jnp.sqrt(jnp.where(inside, 1 - 4 * (pull / reach) / reach, jnp.ones_like(wide)))
    # Two forms of one root of a quadratic equation, each where it does not cancel.
    ahead, sharp = size - near, jnp.where(size < near, spread - (size - near), jnp.ones_like(size))
    stationary = jnp.where(size < near, 2 * (size * (near / sharp) - pull / sharp), (ahead + spread) / 2)
    stationary = jnp.maximum(stationary, 0)
    # The gain of this point over 0 in the objective. The bound keeps the logarithm finite and changes no sign.
    gain = stationary * (size - stationary / 2) - pull * jnp.log1p(jnp.minimum(stationary / near, 1e30))
    result = jnp.where(inside & (gain > 0), jnp.sign(wide) * stationary, jnp.zeros_like(wide))
    result = jnp.where((step == 0) | ~jnp.isfinite(wide), wide, result)
    return in_dtype_of(x, jnp.where(jnp.isnan(step), step, result))


@public
def anchor(x: ArrayLike, step: ArrayLike, *, target: ArrayLike, fisher: ArrayLike = 1.0) -> jax.Array:
    """Returns (x + step·F·w₀)/(1 + step·F), a weighted mean of x and the target: the prox of `penalties.anchor`.

    >>> jaxreg.prox.anchor(jnp.array([3.0, 1.0]), 1.0, target=jnp.array([1.0, 1.0]))
    Array([2., 1.], dtype=float32)
    """
    wide = as_wide(x)
    pull = checked_step(step, wide) * array_option(fisher, wide, name="fisher", or_number=True)
    # The share of the target, which is 1 where the pull overflows.
    share = jnp.where(pull > 1, 1 / (1 + 1 / jnp.maximum(pull, 1)), jnp.minimum(pull, 1) / (1 + jnp.minimum(pull, 1)))
    target = array_option(target, wide, name="target")
    # The second form does not overflow. The first is exact where x is the target.
    difference = target - wide
    moved = jnp.where(jnp.isinf(difference), wide * (1 - share) + target * share, wide + difference * share)
    return in_dtype_of(x, moved)
