"""Penalties that are sums over single weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg._numerics import as_wide, like_x, magnitude, number, scaled


def l1(x: ArrayLike) -> jax.Array:
    """Sum of absolute values: Σ|x|.

    The subgradient at 0 is 0: a weight that is exactly zero is not pushed.

    Args:
      x: a real floating-point array of any shape.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array.

    >>> float(jaxreg.penalties.l1(jnp.array([1.0, -2.0, 0.0])))
    3.0
    >>> jax.grad(jaxreg.penalties.l1)(jnp.array([1.0, -2.0, 0.0]))
    Array([ 1., -1.,  0.], dtype=float32)

    Source: Tibshirani, Regression shrinkage and selection via the lasso, 1996.
    """
    return jnp.sum(magnitude(as_wide(x)))


def l2(x: ArrayLike) -> jax.Array:
    """Sum of squares: Σx², Keras's convention, without ½. The gradient is 2x.

    Args:
      x: a real floating-point array of any shape.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array.

    >>> float(jaxreg.penalties.l2(jnp.array([1.0, -2.0, 0.0])))
    5.0

    Source: Hoerl and Kennard, Ridge regression, 1970.
    """
    return jnp.sum(jnp.square(as_wide(x)))


def l1_l2(x: ArrayLike, *, l1: ArrayLike = 1.0, l2: ArrayLike = 1.0) -> jax.Array:
    """The elastic net: l1 · Σ|x| + l2 · Σx². The gradient at 0 is 0.

    Args:
      x: a real floating-point array of any shape.
      l1: the weight of Σ|x|, a number >= 0.
      l2: the weight of Σx², a number >= 0.

    Returns, dtypes and errors are those of `l1`.

    Raises:
      TypeError, ValueError: `l1` or `l2` is not a number >= 0.

    >>> float(jaxreg.penalties.l1_l2(jnp.array([1.0, -2.0, 0.0]), l1=1.0, l2=0.5))
    5.5

    Source: Zou and Hastie, Regularization and variable selection via the elastic net, 2005.
    """
    x = as_wide(x)
    absolute = scaled(number(l1, x, name="l1"), jnp.sum(magnitude(x)), name="l1")
    return absolute + scaled(number(l2, x, name="l2"), jnp.sum(jnp.square(x)), name="l2")


def l0(x: ArrayLike) -> jax.Array:
    """The number of weights that are not exactly zero: Σ[x ≠ 0].

    Its gradient is 0 everywhere, so that gradient descent does not see it: minimize it by `jaxreg.prox.l0`.

    Args:
      x: a real floating-point array of any shape.

    Returns, dtypes and errors are those of `l1`.

    >>> float(jaxreg.penalties.l0(jnp.array([1.0, -2.0, 0.0])))
    2.0

    Source: Blumensath and Davies, Iterative thresholding for sparse approximations, 2008.
    """
    x = as_wide(x)
    return jnp.sum((x != 0).astype(x.dtype))


def l_half(x: ArrayLike) -> jax.Array:
    """Sum of square roots: Σ|x|^½. It is sparser than l1, and not convex.

    The gradient ½ sign(x)/√|x| grows without bound towards 0; at 0 itself it is 0.

    Args:
      x: a real floating-point array of any shape.

    Returns, dtypes and errors are those of `l1`.

    >>> float(jaxreg.penalties.l_half(jnp.array([4.0, -9.0, 0.0])))
    5.0

    Source: Xu, Chang, Xu and Zhang, L1/2 regularization: a thresholding representation theory, 2012.
    """
    x = magnitude(as_wide(x))
    normal = x >= np.finfo(x.dtype).tiny  # hardware may take the root of a denormal number for that of 0
    return jnp.sum(jnp.where(normal, jnp.sqrt(jnp.where(normal, x, jnp.ones_like(x))), jnp.zeros_like(x)))


def huber(x: ArrayLike, *, delta: ArrayLike = 1.0) -> jax.Array:
    """The Huber function: Σ x²/(2δ) where |x| ≤ δ, |x| − δ/2 beyond. It is l1 with a rounded tip.

    The gradient is x/δ, clipped to [−1, 1], so 0 at 0.

    Args:
      x: a real floating-point array of any shape.
      delta: where the parabola meets the line, a number > 0.

    Returns, dtypes and errors are those of `l1`.

    Raises:
      TypeError, ValueError: `delta` is not a number > 0.

    >>> float(jaxreg.penalties.huber(jnp.array([0.5, -2.0, 0.0])))
    1.625

    Source: Huber, Robust estimation of a location parameter, 1964.
    """
    x = magnitude(as_wide(x))
    delta = number(delta, x, name="delta", above=0.0)
    inside = jnp.minimum(x, delta)
    return jnp.sum(inside * inside / (2 * delta) + (x - inside))


def mcp(x: ArrayLike, *, lam: ArrayLike = 1.0, gamma: ArrayLike = 3.0) -> jax.Array:
    """The minimax concave penalty: Σ λ|x| − x²/(2γ) where |x| ≤ γλ, γλ²/2 beyond.

    Small weights are pushed as by λ·l1, those beyond γλ not at all, so that large weights keep their size. The
    gradient is sign(x)(λ − |x|/γ)₊, and 0 at 0. Not convex.

    Args:
      x: a real floating-point array of any shape.
      lam: the slope λ at 0, a number >= 0.
      gamma: how far the concave part reaches, in units of λ, a number > 0.

    Returns, dtypes and errors are those of `l1`.

    Raises:
      TypeError, ValueError: `lam` is not a number >= 0, or `gamma` not a number > 0.

    >>> float(jaxreg.penalties.mcp(jnp.array([1.0, -5.0, 0.0]), gamma=2.0))
    1.75

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010.
    """
    x = magnitude(as_wide(x))
    lam, gamma = number(lam, x, name="lam"), number(gamma, x, name="gamma", above=0.0)
    inside = jnp.minimum(x, gamma * lam)
    return jnp.sum(lam * inside - inside * inside / (2 * gamma))


def scad(x: ArrayLike, *, lam: ArrayLike = 1.0, a: ArrayLike = 3.7) -> jax.Array:
    """Smoothly clipped absolute deviation: Σ of λ|x| up to λ, a parabola up to aλ, λ²(a + 1)/2 beyond.

    The gradient is sign(x) times λ up to λ, (aλ − |x|)/(a − 1) up to aλ and 0 beyond, and 0 at 0. Not convex.

    Args:
      x: a real floating-point array of any shape.
      lam: the slope λ at 0, a number >= 0.
      a: where the penalty becomes constant, in units of λ, a number > 1.

    Returns, dtypes and errors are those of `l1`.

    Raises:
      TypeError, ValueError: `lam` is not a number >= 0, or `a` not a number > 1.

    >>> float(jaxreg.penalties.scad(jnp.array([1.0, -5.0, 0.0]), a=3.0))
    3.0

    Source: Fan and Li, Variable selection via nonconcave penalized likelihood and its oracle properties, 2001.
    """
    x = magnitude(as_wide(x))
    lam, a = number(lam, x, name="lam"), number(a, x, name="a", above=1.0)
    beyond = jnp.clip(x - lam, 0, (a - 1) * lam)
    return jnp.sum(lam * jnp.minimum(x, lam) + lam * beyond - beyond * beyond / (2 * (a - 1)))


def log_sum(x: ArrayLike, *, epsilon: ArrayLike = 1.0) -> jax.Array:
    """Sum of logarithms: Σ log(1 + |x|/ε). The smaller ε, the nearer to a count of the nonzero weights. Not convex.

    The gradient is sign(x)/(ε + |x|), and 0 at 0.

    Args:
      x: a real floating-point array of any shape.
      epsilon: a number > 0.

    Returns, dtypes and errors are those of `l1`.

    Raises:
      TypeError, ValueError: `epsilon` is not a number > 0.

    >>> print(f"{jaxreg.penalties.log_sum(jnp.array([1.0, -3.0, 0.0])):.4f}")
    2.0794

    Source: Candès, Wakin and Boyd, Enhancing sparsity by reweighted ℓ1 minimization, 2008.
    """
    x = magnitude(as_wide(x))
    epsilon = number(epsilon, x, name="epsilon", above=0.0)
    # The quotient may overflow where its logarithm does not; ε is then nothing beside |x|.
    huge = x > epsilon * 1e30
    near = jnp.log1p(jnp.where(huge, jnp.zeros_like(x), x) / epsilon)
    far = jnp.log(jnp.where(huge, x, jnp.ones_like(x))) - jnp.log(epsilon)
    return jnp.sum(jnp.where(huge, far, near))


def anchor(x: ArrayLike, *, target: ArrayLike, fisher: ArrayLike = 1.0) -> jax.Array:
    """Squared distance from a target: ½ Σ F(x − w₀)². The gradient is F(x − w₀).

    With the initial or the pretrained weights as w₀ and F = 1 it is L2-Init and L2-SP; with the diagonal of the Fisher
    information, elastic weight consolidation.

    Args:
      x: a real floating-point array of any shape.
      target: w₀, an array of the shape of `x`.
      fisher: F, a number >= 0, or an array of the shape of `x`.

    Returns, dtypes and errors are those of `l1`.

    Raises:
      TypeError, ValueError: `target` or `fisher` is not made of real numbers, or has another shape.

    >>> x, pretrained = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
    >>> float(jaxreg.penalties.anchor(x, target=pretrained))
    2.0

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017; Li, Grandvalet and Davoine,
    Explicit inductive bias for transfer learning with convolutional networks, 2018.
    """
    x = as_wide(x)
    difference = x - like_x(target, x, name="target")
    return jnp.sum(like_x(fisher, x, name="fisher", or_number=True) * jnp.square(difference)) / 2
