"""Regularizers of single weights."""

from typing import Any

import jax

from jaxreg import penalties, prox
from jaxreg._numerics import scaled, times_strength
from jaxreg._regularizers._strengths import Strengths, WithProx, shape, strength


class L1(Strengths):
    """l1 · Σ|x|, with the subgradient 0 at 0.

    Args:
      l1: the strength, a number >= 0 or an array; None means 0.01.

    >>> float(jaxreg.L1(0.5)(jnp.array([1.0, -2.0, 0.0])))
    1.5
    >>> jaxreg.L1(0.5).prox(jnp.array([1.0, -2.0, 0.1]), 1.0)
    Array([ 0.5, -1.5,  0. ], dtype=float32)

    Source: Tibshirani, Regression shrinkage and selection via the lasso, 1996; `keras.regularizers.L1`.
    """

    l1: Any = strength(0.01, unset=0.01)

    _takes_steps = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.l1, penalties.l1(x), name="l1")

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return prox.l1(x, times_strength(step, self.l1, name="l1"))

    def _elastic_net(self) -> tuple[Any, Any]:
        return self.l1, 0.0


class L2(Strengths):
    """l2 · Σx², without ½: `L2(l2)` decays weights as `weight_decay=2 * l2` does.

    Args:
      l2: the strength, a number >= 0 or an array; None means 0.01.

    >>> float(jaxreg.L2(0.5)(jnp.array([1.0, -2.0, 0.0])))
    2.5

    Source: Hoerl and Kennard, Ridge regression, 1970; `keras.regularizers.L2`.
    """

    l2: Any = strength(0.01, unset=0.01)

    _takes_steps = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.l2, penalties.l2(x), name="l2")

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return prox.l2(x, times_strength(step, self.l2, name="l2"))

    def _elastic_net(self) -> tuple[Any, Any]:
        return 0.0, self.l2


class L1L2(Strengths):
    """l1 · Σ|x| + l2 · Σx², the elastic net, with the subgradient 0 at 0.

    Args:
      l1: the strength of Σ|x|, a number >= 0 or an array; None means 0.
      l2: the strength of Σx², a number >= 0 or an array; None means 0.

    >>> float(jaxreg.L1L2(l1=1.0, l2=0.5)(jnp.array([1.0, -2.0, 0.0])))
    5.5

    By name and as a class, as in `jaxreg.get("l1_l2")` and `jaxreg.get(L1L2)`, both strengths are 0.01.

    Source: Zou and Hastie, Regularization and variable selection via the elastic net, 2005;
    `keras.regularizers.L1L2`.
    """

    l1: Any = strength(0.0, unset=0.0)
    l2: Any = strength(0.0, unset=0.0)

    _takes_steps = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.l1, penalties.l1(x), name="l1") + scaled(self.l2, penalties.l2(x), name="l2")

    def prox(self, x: jax.Array, step: Any) -> jax.Array:
        return prox.l1_l2(x, step, l1=self.l1, l2=self.l2)

    def _elastic_net(self) -> tuple[Any, Any]:
        return self.l1, self.l2


@jax.custom_jvp
def _counted(x: jax.Array) -> jax.Array:
    return penalties.l0(x)


@_counted.defjvp
def _counted_jvp(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "`L0` counts weights, so its gradient would be 0 and do nothing; take its prox, by `jaxreg.proximal` or "
        "`Rules.prox`, and keep it out of what is differentiated"
    )


class L0(WithProx):
    """factor · the number of weights that are not exactly zero: `jaxreg.penalties.l0`. It is for `jaxreg.proximal`.

    Args:
      factor: the strength, a number >= 0 or an array. A prox step η sets the weights up to √(2η·factor) to zero, and
        leaves the others as they are.

    Raises:
      TypeError: it is differentiated with respect to the weights, which would give 0.

    >>> jaxreg.L0(0.5).prox(jnp.array([1.5, -0.5, 0.0]), 1.0)
    Array([1.5, 0. , 0. ], dtype=float32)

    Source: Blumensath and Davies, Iterative thresholding for sparse approximations, 2008.
    """

    _penalty, _prox = penalties.l0, prox.l0

    def __call__(self, x: jax.Array) -> jax.Array:
        return scaled(self.factor, _counted(x), name="factor")

    prox = WithProx.prox


class LHalf(WithProx):
    """factor · Σ|x|^½, sparser than L1 and not convex: `jaxreg.penalties.l_half`.

    Args:
      factor: the strength, a number >= 0 or an array.

    >>> float(jaxreg.LHalf(0.5)(jnp.array([4.0, -9.0, 0.0])))
    2.5

    Source: Xu, Chang, Xu and Zhang, L1/2 regularization: a thresholding representation theory, 2012.
    """

    _penalty, _prox, _takes_steps = penalties.l_half, prox.l_half, True


class Huber(WithProx):
    """factor · Σ of x²/(2δ) up to |x| = δ, |x| − δ/2 beyond: `jaxreg.penalties.huber`.

    Args:
      factor: the strength, a number >= 0 or an array.
      delta: where the parabola meets the line, a number > 0 or an array.

    >>> float(jaxreg.Huber(2.0)(jnp.array([0.5, -2.0, 0.0])))
    3.25

    Source: Huber, Robust estimation of a location parameter, 1964.
    """

    delta: Any = shape(1.0, above=0.0)

    _penalty, _prox, _takes_steps = penalties.huber, prox.huber, True


class MCP(WithProx):
    """factor · the minimax concave penalty, which leaves weights beyond γλ alone: `jaxreg.penalties.mcp`.

    Args:
      factor: the strength, a number >= 0 or an array.
      lam: the slope λ at 0, a number >= 0 or an array.
      gamma: how far the concave part reaches, in units of λ, a number > 0 or an array.

    >>> float(jaxreg.MCP(2.0, gamma=2.0)(jnp.array([1.0, -5.0, 0.0])))
    3.5

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010.
    """

    lam: Any = shape(1.0)
    gamma: Any = shape(3.0, above=0.0)

    # Flat beyond γλ, where Adam's D becomes 0 and a step for each weight too long.
    _penalty, _prox = penalties.mcp, prox.mcp


class SCAD(WithProx):
    """factor · smoothly clipped absolute deviation, constant beyond aλ: `jaxreg.penalties.scad`.

    Args:
      factor: the strength, a number >= 0 or an array.
      lam: the slope λ at 0, a number >= 0 or an array.
      a: where the penalty becomes constant, in units of λ, a number > 1 or an array.

    >>> float(jaxreg.SCAD(2.0, a=3.0)(jnp.array([1.0, -5.0, 0.0])))
    6.0

    Source: Fan and Li, Variable selection via nonconcave penalized likelihood and its oracle properties, 2001.
    """

    lam: Any = shape(1.0)
    a: Any = shape(3.7, above=1.0)

    # Flat beyond aλ, as MCP is.
    _penalty, _prox = penalties.scad, prox.scad


class LogSum(WithProx):
    """factor · Σ log(1 + |x|/ε), not convex: `jaxreg.penalties.log_sum`.

    Args:
      factor: the strength, a number >= 0 or an array.
      epsilon: a number > 0 or an array; the smaller, the nearer to a count of the nonzero weights.

    >>> print(f"{jaxreg.LogSum(0.5)(jnp.array([1.0, -3.0, 0.0])):.4f}")
    1.0397

    Source: Candès, Wakin and Boyd, Enhancing sparsity by reweighted ℓ1 minimization, 2008.
    """

    epsilon: Any = shape(1.0, above=0.0)

    _penalty, _prox, _takes_steps = penalties.log_sum, prox.log_sum, True
