"""Prox of the penalties that are sums over single weights."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._numerics import as_wide, checked_step, like_x, number


def soft(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """sign(x)(|x| − threshold)₊, exactly 0 up to the threshold."""
    return x - jnp.clip(x, -threshold, threshold)


def _in_dtype_of(x: ArrayLike, result: jax.Array) -> jax.Array:
    return result.astype(jnp.asarray(x).dtype)


def l1(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Soft thresholding: sign(x)(|x| − step)₊, the prox of `jaxreg.penalties.l1`.

    Args:
      x: a real floating-point array of any shape.
      step: a number >= 0, or an array of the shape of `x`.

    Returns:
      An array of the shape and dtype of `x`, computed in at least float32.

    Raises:
      TypeError: `x` or `step` is of another type.
      ValueError: `step` is a Python number that is negative or not finite, or an array of another shape.

    >>> jaxreg.prox.l1(jnp.array([3.0, -0.5, -2.0]), 1.0)
    Array([ 2.,  0., -1.], dtype=float32)

    Source: Donoho, De-noising by soft-thresholding, 1995.
    """
    wide = as_wide(x)
    return _in_dtype_of(x, soft(wide, checked_step(step, wide)))


def l2(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Shrinkage: x/(1 + 2·step), the prox of `jaxreg.penalties.l2`, which has no ½.

    Args, dtypes and errors are those of `l1`.

    >>> jaxreg.prox.l2(jnp.array([3.0, -0.75]), 0.25)
    Array([ 2. , -0.5], dtype=float32)

    Source: Parikh and Boyd, Proximal algorithms, 2014.
    """
    wide = as_wide(x)
    return _in_dtype_of(x, wide / (1 + 2 * checked_step(step, wide)))


def l1_l2(x: ArrayLike, step: ArrayLike, *, l1: ArrayLike = 1.0, l2: ArrayLike = 1.0) -> jax.Array:
    """Soft thresholding, then shrinkage: soft(x, step·l1)/(1 + 2·step·l2), the prox of `jaxreg.penalties.l1_l2`.

    Args:
      x, step: as in `l1`.
      l1: the weight of Σ|x|, a number >= 0.
      l2: the weight of Σx², a number >= 0.

    Dtypes and errors are those of `l1`.

    >>> jaxreg.prox.l1_l2(jnp.array([3.0, -0.5]), 1.0, l2=0.5)
    Array([1., 0.], dtype=float32)

    Source: Zou and Hastie, Regularization and variable selection via the elastic net, 2005.
    """
    wide = as_wide(x)
    step, l1, l2 = checked_step(step, wide), number(l1, wide, name="l1"), number(l2, wide, name="l2")
    return _in_dtype_of(x, soft(wide, step * l1) / (1 + 2 * step * l2))


def l0(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Hard thresholding: 0 where |x| ≤ √(2·step), else x. The prox of `jaxreg.penalties.l0`.

    Args, dtypes and errors are those of `l1`.

    >>> jaxreg.prox.l0(jnp.array([3.0, -0.5, -2.0]), 0.5)
    Array([ 3.,  0., -2.], dtype=float32)

    Source: Blumensath and Davies, Iterative thresholding for sparse approximations, 2008.
    """
    wide = as_wide(x)
    return _in_dtype_of(x, _hard(wide, 2 * checked_step(step, wide)))


def _hard(x: jax.Array, squared_threshold: jax.Array) -> jax.Array:
    """0 up to the root of a number, which is taken of no 0 that may be differentiated."""
    positive = squared_threshold > 0
    threshold = jnp.sqrt(jnp.where(positive, squared_threshold, jnp.ones_like(squared_threshold)))
    hard = jnp.where(positive & (jnp.abs(x) <= threshold), jnp.zeros_like(x), x)
    return jnp.where(jnp.isnan(squared_threshold), squared_threshold, hard)


def l_half(x: ArrayLike, step: ArrayLike) -> jax.Array:
    """Half thresholding: 0 where |x| ≤ 1.5·step^⅔, else ⅔x(1 + cos(⅔π − ⅔φ)). The prox of `jaxreg.penalties.l_half`.

    φ = arccos((step/4)(|x|/3)^(−3/2)), the root of a cubic equation.

    Args, dtypes and errors are those of `l1`.

    >>> print(jaxreg.prox.l_half(jnp.array([3.0, -1.5]), 1.0).round(4))
    [2.6955 0.    ]

    Source: Xu, Chang, Xu and Zhang, L1/2 regularization: a thresholding representation theory, 2012.
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
    return _in_dtype_of(x, jnp.where(jnp.isnan(step), step, result))


def huber(x: ArrayLike, step: ArrayLike, *, delta: ArrayLike = 1.0) -> jax.Array:
    """x·δ/(δ + step) where |x| ≤ δ + step, else x − step·sign(x). The prox of `jaxreg.penalties.huber`.

    It has no zeros but those of `x`.

    Args:
      x, step: as in `l1`.
      delta: where the parabola meets the line, a number > 0.

    Dtypes and errors are those of `l1`.

    >>> jaxreg.prox.huber(jnp.array([3.0, -1.0]), 1.0)
    Array([ 2. , -0.5], dtype=float32)

    Source: Parikh and Boyd, Proximal algorithms, 2014.
    """
    wide = as_wide(x)
    step, delta = checked_step(step, wide), number(delta, wide, name="delta", above=0.0)
    return _in_dtype_of(x, wide - step * jnp.clip(wide / (delta + step), -1, 1))


def mcp(x: ArrayLike, step: ArrayLike, *, lam: ArrayLike = 1.0, gamma: ArrayLike = 3.0) -> jax.Array:
    """Firm thresholding: soft(x, step·λ)/(1 − step/γ) where |x| ≤ γλ, else x. The prox of `jaxreg.penalties.mcp`.

    From step = γ on the objective is concave up to γλ: x is then kept beyond λ√(step·γ), and 0 up to there.

    Args:
      x, step: as in `l1`.
      lam: the slope λ of the penalty at 0, a number >= 0.
      gamma: how far the concave part reaches, in units of λ, a number > 0.

    Dtypes and errors are those of `l1`.

    >>> jaxreg.prox.mcp(jnp.array([5.0, 2.0, -0.5]), 1.0, gamma=2.0)
    Array([5., 2., 0.], dtype=float32)

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010; Gao and Bruce, WaveShrink
    with firm shrinkage, 1997.
    """
    wide = as_wide(x)
    step, lam = checked_step(step, wide), number(lam, wide, name="lam")
    gamma = number(gamma, wide, name="gamma", above=0.0)
    is_firm = step < gamma
    slope = 1 - jnp.where(is_firm, step, jnp.zeros_like(step)) / gamma
    firm = jnp.where(jnp.abs(wide) <= gamma * lam, soft(wide, step * lam) / slope, wide)
    return _in_dtype_of(x, jnp.where(is_firm, firm, _hard(wide, lam * lam * step * gamma)))


def scad(x: ArrayLike, step: ArrayLike, *, lam: ArrayLike = 1.0, a: ArrayLike = 3.7) -> jax.Array:
    """soft(x, step·λ) up to |x| = (1 + step)λ; ((a−1)x − sign(x)·aλ·step)/(a−1−step) up to aλ; x beyond.

    The prox of `jaxreg.penalties.scad`. From step = a − 1 on the objective is concave between λ and aλ: the better of
    the points on its two sides is taken.

    Args:
      x, step: as in `l1`.
      lam: the slope λ of the penalty at 0, a number >= 0.
      a: where the penalty becomes constant, in units of λ, a number > 1.

    Dtypes and errors are those of `l1`.

    >>> jaxreg.prox.scad(jnp.array([5.0, 2.5, -1.5]), 1.0, a=3.0)
    Array([ 5. ,  2. , -0.5], dtype=float32)

    Source: Fan and Li, Variable selection via nonconcave penalized likelihood and its oracle properties, 2001.
    """
    wide = as_wide(x)
    step, lam = checked_step(step, wide), number(lam, wide, name="lam")
    a = number(a, wide, name="a", above=1.0)
    size, convex = jnp.abs(wide), step < a - 1
    start = soft(wide, step * lam)
    between = (a - 1) * wide - jnp.sign(wide) * a * lam * step
    between /= jnp.where(convex, a - 1 - step, jnp.ones_like(step))
    joined = jnp.where(size <= (1 + step) * lam, start, jnp.where(size <= a * lam, between, wide))

    low = jnp.minimum(jnp.abs(start), lam)
    high = jnp.maximum(size, a * lam)
    gain = (size - low) ** 2 / 2 + step * lam * low - ((size - high) ** 2 / 2 + step * lam * lam * (a + 1) / 2)
    split = jnp.sign(wide) * jnp.where(gain > 0, high, low)
    return _in_dtype_of(x, jnp.where(convex, joined, split))


def log_sum(x: ArrayLike, step: ArrayLike, *, epsilon: ArrayLike = 1.0) -> jax.Array:
    """The better of 0 and sign(x)·½(|x| − ε + √((|x| + ε)² − 4·step)). The prox of `jaxreg.penalties.log_sum`.

    Args:
      x, step: as in `l1`.
      epsilon: a number > 0.

    Dtypes and errors are those of `l1`.

    >>> print(jaxreg.prox.log_sum(jnp.array([3.0, -0.5]), 1.0).round(4))
    [2.7321 0.    ]

    Source: Candès, Wakin and Boyd, Enhancing sparsity by reweighted ℓ1 minimization, 2008; Prater-Bennette, Shen and
    Tripp, The proximity operator of the log-sum penalty, 2022.
    """
    wide = as_wide(x)
    step, epsilon = checked_step(step, wide), number(epsilon, wide, name="epsilon", above=0.0)
    size = jnp.abs(wide)
    reach = size + epsilon
    ratio = 4 * (step / reach) / reach  # no square, which could overflow
    inside = ratio < 1
    spread = reach * jnp.sqrt(jnp.where(inside, 1 - ratio, jnp.ones_like(ratio)))
    # Two forms of one root of a quadratic equation, each where it does not cancel.
    ahead, sharp = size - epsilon, jnp.where(size < epsilon, spread - (size - epsilon), jnp.ones_like(size))
    root = jnp.where(size < epsilon, 2 * (size * (epsilon / sharp) - step / sharp), (ahead + spread) / 2)
    stationary = jnp.maximum(root, 0)
    # What it gains over 0 in the objective; the bound keeps the logarithm finite and changes no sign.
    gain = stationary * (size - stationary / 2) - step * jnp.log1p(jnp.minimum(stationary / epsilon, 1e30))
    kept = (inside & (gain > 0)) | jnp.isnan(wide)
    result = jnp.where(kept, jnp.sign(wide) * stationary, jnp.zeros_like(wide))
    return _in_dtype_of(x, jnp.where(step == 0, wide, jnp.where(jnp.isnan(step), step, result)))


def anchor(x: ArrayLike, step: ArrayLike, *, target: ArrayLike, fisher: ArrayLike = 1.0) -> jax.Array:
    """A weighted mean of x and the target: (x + step·F·w₀)/(1 + step·F), the prox of `jaxreg.penalties.anchor`.

    Args:
      x, step: as in `l1`.
      target: w₀, an array of the shape of `x`.
      fisher: F, a number >= 0, or an array of the shape of `x`.

    Dtypes and errors are those of `l1`.

    >>> jaxreg.prox.anchor(jnp.array([3.0, 1.0]), 1.0, target=jnp.array([1.0, 1.0]))
    Array([2., 1.], dtype=float32)

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017.
    """
    wide = as_wide(x)
    pull = checked_step(step, wide) * like_x(fisher, wide, name="fisher", or_number=True)
    return _in_dtype_of(x, wide + (like_x(target, wide, name="target") - wide) * (pull / (1 + pull)))
