"""Regularizers that are sums over single weights."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg import penalties, prox
from jaxreg._checks import as_real, brief, checked_number, describe, option
from jaxreg._evaluate import fitting, in_order
from jaxreg._fields import number, strength
from jaxreg._names import public
from jaxreg._numerics import as_floats, as_wide
from jaxreg._regularizers._shipped import Shipped


@public
class L1(Shipped):
    """The lasso penalty, l1 · Σ|x|.

    It moves every weight towards 0 at the same rate. Use it for sparse weights: in a loss it makes weights small, and
    under `jaxreg.proximal` exactly zero.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient is l1 · sign(x). It is 0 at a weight that is exactly
    0, where Keras has l1. The prox with step η sets weights up to η · l1 to zero, and moves the others by that much.

    Args:
      l1: the strength, a number >= 0 or an array. None means 0.01, as in Keras.

    Raises:
      TypeError, ValueError: `l1` is not a finite number >= 0.

    >>> float(jaxreg.L1(0.5)(jnp.array([1.0, -2.0, 0.0])))
    1.5
    >>> jax.grad(jaxreg.L1(0.5))(jnp.array([1.0, -2.0, 0.0]))
    Array([ 0.5, -0.5,  0. ], dtype=float32)
    >>> jaxreg.L1(0.5).prox(jnp.array([1.0, -2.0, 0.1]), 1.0)
    Array([ 0.5, -1.5,  0. ], dtype=float32)

    Source: Tibshirani, Regression shrinkage and selection via the lasso, 1996; `keras.regularizers.L1`.
    """

    l1: Any = strength(0.01, unset=0.01)

    _penalty, _prox, has_metric_prox = penalties.l1, prox.l1, True

    def _is_elastic_net(self) -> bool:
        return True

    def _elastic_net(self) -> tuple[Any, Any]:
        return self._number("l1"), 0.0


@public
class L2(Shipped):
    """The ridge penalty, l2 · Σx². As in Keras, there is no ½.

    It shrinks every weight in proportion to its size. Use it as weight decay: `L2(l2)` decays weights as
    `weight_decay=2 * l2` does.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The gradient is 2 · l2 · x. The prox with step η divides every
    weight by 1 + 2η · l2.

    Args:
      l2: the strength, a number >= 0 or an array. None means 0.01, as in Keras.

    Raises:
      TypeError, ValueError: `l2` is not a finite number >= 0.

    >>> float(jaxreg.L2(0.5)(jnp.array([1.0, -2.0, 0.0])))
    2.5

    Source: Hoerl and Kennard, Ridge regression, 1970; `keras.regularizers.L2`.
    """

    l2: Any = strength(0.01, unset=0.01)

    _penalty, _prox, has_metric_prox = penalties.l2, prox.l2, True

    def _is_elastic_net(self) -> bool:
        return True

    def _elastic_net(self) -> tuple[Any, Any]:
        return 0.0, self._number("l2")


@public
class L1L2(Shipped):
    """The elastic net, l1 · Σ|x| + l2 · Σx².

    Use it where weights are correlated: unlike L1 alone it keeps groups of similar weights together, and under
    `jaxreg.proximal` it still makes the others exactly zero.

    Shapes and dtypes are those of `L1`. The gradient is l1 · sign(x) + 2 · l2 · x, and 0 at 0. The prox is that of
    `L1`, then that of `L2`.

    Args:
      l1: the strength of Σ|x|, a number >= 0 or an array. None means 0.
      l2: the strength of Σx², a number >= 0 or an array. None means 0.

    Both strengths are 0 by default, as in Keras. As a name and as a class, in `jaxreg.get("l1_l2")` and
    `jaxreg.get(L1L2)`, both are 0.01.

    Raises:
      TypeError, ValueError: `l1` or `l2` is not a finite number >= 0.

    >>> float(jaxreg.L1L2(l1=1.0, l2=0.5)(jnp.array([1.0, -2.0, 0.0])))
    5.5

    Source: Zou and Hastie, Regularization and variable selection via the elastic net, 2005;
    `keras.regularizers.L1L2`.
    """

    l1: Any = number(0.0, unset=0.0, kw_only=False)
    l2: Any = number(0.0, unset=0.0, kw_only=False)

    _penalty, _prox, has_metric_prox = penalties.l1_l2, prox.l1_l2, True

    def _is_elastic_net(self) -> bool:
        return True

    _named_defaults: ClassVar[dict[str, float]] = {"l1": 0.01, "l2": 0.01}

    def _elastic_net(self) -> tuple[Any, Any]:
        return self._number("l1"), self._number("l2")


@jax.custom_jvp
def _counted(x: jax.Array) -> jax.Array:
    return penalties.l0(x)


@_counted.defjvp
def _counted_jvp(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "`L0` counts weights, so its gradient would be 0 and do nothing; use its prox, by `jaxreg.proximal` or "
        "`Rules.prox`, and keep it out of what is differentiated"
    )


@public
class L0(Shipped):
    """The number of weights that are not exactly zero, factor · Σ[x ≠ 0].

    Use it with `jaxreg.proximal` in the Euclidean metric, to remove small weights and leave the others as they are. It
    is not convex, so the result depends on the start.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the prox
    has the dtype of the array. The gradient would be 0 everywhere, so differentiating is an error. The prox with step η
    sets weights up to √(2η · factor) to zero.

    Args:
      factor: the strength, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0.
      TypeError: the penalty is differentiated with respect to the weights.

    >>> jaxreg.L0(0.5).prox(jnp.array([1.5, -0.5, 0.0]), 1.0)
    Array([1.5, 0. , 0. ], dtype=float32)

    Source: Blumensath and Davies, Iterative thresholding for sparse approximations, 2008.
    """

    factor: Any = strength(0.01)

    _penalty, _prox = _counted, prox.l0


@public
class LHalf(Shipped):
    """The sum of square roots, factor · Σ|x|^½.

    Use it for sparser weights than L1 gives at the same error, with less shrinkage of large ones. It lies between `L0`
    and `L1`. It is not convex, so the result depends on the start.

    Shapes and dtypes are those of `L1`. The gradient ½ factor · sign(x)/√|x| grows without bound towards 0, and is 0 at
    0 itself, so prefer the prox to the gradient. The prox with step η sets weights up to 1.5 (η · factor)^⅔ to zero.

    Args:
      factor: the strength, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0.

    >>> float(jaxreg.LHalf(0.5)(jnp.array([4.0, -9.0, 0.0])))
    2.5

    Source: Xu, Chang, Xu and Zhang, L1/2 regularization: a thresholding representation theory, 2012.
    """

    factor: Any = strength(0.01)

    _penalty, _prox, has_metric_prox = penalties.l_half, prox.l_half, True


@public
class LTwoThirds(Shipped):
    """The sum of powers, factor · Σ|x|^⅔.

    Use it between `LHalf` and `L1`: its threshold is softer than that of LHalf, and it shrinks large weights less than
    L1 does. It is not convex, so the result depends on the start.

    Shapes and dtypes are those of `L1`. The gradient ⅔ factor · sign(x)/|x|^⅓ grows without bound towards 0, and is 0
    at 0 itself, so prefer the prox to the gradient. The prox with step η sets weights up to 2(⅔η · factor)^¾ to zero.

    Args:
      factor: the strength, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0.

    >>> float(jaxreg.LTwoThirds(0.5)(jnp.array([8.0, -1.0, 0.0])))
    2.5

    Source: Cao, Sun and Xu, Fast image deconvolution using closed-form thresholding formulas of Lq (q = 1/2, 2/3)
    regularization, 2013.
    """

    factor: Any = strength(0.01)

    _penalty, _prox, has_metric_prox = penalties.l_two_thirds, prox.l_two_thirds, True


@public
class Huber(Shipped):
    """The Huber penalty, factor · the sum of x²/(2δ) where |x| ≤ δ, and of |x| − δ/2 beyond.

    It is L1 with a rounded tip. Use it where a smooth penalty is needed, such as under L-BFGS, and large weights are to
    be shrunk at one rate. It makes no weight zero.

    Shapes and dtypes are those of `L1`. The gradient is factor · x/δ, clipped to ±factor, so it is smooth at 0.

    Args:
      factor: the strength, a number >= 0 or an array.
      delta: where the parabola meets the line, a number > 0 or an array.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0, or `delta` is not one > 0.

    >>> float(jaxreg.Huber(2.0)(jnp.array([0.5, -2.0, 0.0])))
    3.25

    Source: Huber, Robust estimation of a location parameter, 1964.
    """

    factor: Any = strength(0.01)
    delta: Any = number(1.0, above=0.0)

    _penalty, _prox, has_metric_prox = penalties.huber, prox.huber, True

    def _is_separable(self) -> bool:
        return True


@public
class MCP(Shipped):
    """The minimax concave penalty, factor · the sum of λ|x| − x²/(2γ) where |x| ≤ γλ, and of γλ²/2 beyond.

    It pushes small weights as λ · L1 does, and weights beyond γλ not at all. Use it for sparse weights without the
    shrinkage that L1 gives to large ones. It is not convex, so the result depends on the start.

    Shapes and dtypes are those of `L1`. The gradient is factor · sign(x)(λ − |x|/γ)₊, and 0 at 0. The prox is firm
    thresholding. It is not for Adam's metric: where the penalty is flat, Adam's second moment goes to 0, and the step
    of the prox to infinity.

    Args:
      factor: the strength, a number >= 0 or an array.
      lam: the slope λ at 0, a number >= 0 or an array.
      gamma: how far the concave part reaches, in units of λ, a number > 0 or an array.

    Raises:
      TypeError, ValueError: `factor` or `lam` is not a finite number >= 0, or `gamma` is not one > 0.

    >>> float(jaxreg.MCP(2.0, gamma=2.0)(jnp.array([1.0, -5.0, 0.0])))
    3.5

    Source: Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010; Gao and Bruce, WaveShrink
    with firm shrinkage, 1997, for the prox.
    """

    factor: Any = strength(0.01)
    lam: Any = number(1.0)
    gamma: Any = number(3.0, above=0.0)

    _penalty, _prox = penalties.mcp, prox.mcp


@public
class SCAD(Shipped):
    """Smoothly clipped absolute deviation, factor · the sum of λ|x| up to λ, a parabola up to aλ, λ²(a + 1)/2 beyond.

    Use it as `MCP`, where weights up to λ are to be pushed in full. It is not convex, so the result depends on the
    start.

    Shapes and dtypes are those of `L1`. The gradient is factor · sign(x) times λ up to λ, (aλ − |x|)/(a − 1) up to aλ
    and 0 beyond. It is 0 at 0. The prox is not for Adam's metric, for the reason given in `MCP`.

    Args:
      factor: the strength, a number >= 0 or an array.
      lam: the slope λ at 0, a number >= 0 or an array.
      a: where the penalty becomes constant, in units of λ, a number > 1 or an array.

    Raises:
      TypeError, ValueError: `factor` or `lam` is not a finite number >= 0, or `a` is not one > 1.

    >>> float(jaxreg.SCAD(2.0, a=3.0)(jnp.array([1.0, -5.0, 0.0])))
    6.0

    Source: Fan and Li, Variable selection via nonconcave penalized likelihood and its oracle properties, 2001.
    """

    factor: Any = strength(0.01)
    lam: Any = number(1.0)
    a: Any = number(3.7, above=1.0)

    _penalty, _prox = penalties.scad, prox.scad


@public
class LogSum(Shipped):
    """The log-sum penalty, factor · Σ log(1 + |x|/ε).

    The smaller ε is, the nearer it comes to a count of the weights that are not zero. Use it for sparser weights than
    L1 gives. It is not convex, so the result depends on the start.

    Shapes and dtypes are those of `L1`. The gradient is factor · sign(x)/(ε + |x|), and 0 at 0. The prox takes the
    better of 0 and a root of a quadratic equation.

    Args:
      factor: the strength, a number >= 0 or an array.
      epsilon: ε, a number > 0 or an array, in the unit of the weights.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0, or `epsilon` is not one > 0.

    >>> print(f"{jaxreg.LogSum(0.5)(jnp.array([1.0, -3.0, 0.0])):.4f}")
    1.0397

    Source: Candès, Wakin and Boyd, Enhancing sparsity by reweighted ℓ1 minimization, 2008; Prater-Bennette, Shen and
    Tripp, The proximity operator of the log-sum penalty, 2022, for the prox.
    """

    factor: Any = strength(0.01)
    epsilon: Any = number(1.0, above=0.0)

    _penalty, _prox, has_metric_prox = penalties.log_sum, prox.log_sum, True


@public
class Anchor(Shipped):
    """Half the squared distance from reference weights, ½ · factor · Σ F(x − w₀)².

    It pulls weights to where they were. Use it to fine-tune, or to learn a task without forgetting another one. The
    references w₀ are kept as memory: by default the values at `init`, which is L2-Init, for networks that must stay
    able to learn. With `memory=rules.init(pretrained)` it is L2-SP. With `memory=rules.init(pretrained,
    importance=fisher)` it is elastic weight consolidation (EWC): `jaxreg.diagnostics.fisher_diagonal` measures F.
    Without importance F is 1.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The memory is w₀, or the pair (w₀, F), in the shape of the array.
    The transforms take it as `memory=` and keep it in their state, and so does `rules(params, memory=...)` in a loss.
    For a single array, `regularizer.init(x)` makes it. The gradient is factor · F(x − w₀), and nothing flows to the
    memory. The prox with step η is (x + η · factor · F · w₀)/(1 + η · factor · F).

    Args:
      factor: the strength, a number >= 0 or an array.

    Raises:
      TypeError, ValueError: `factor` is not a finite number >= 0. When called: `memory` is missing or has another
        shape. On `init`: `importance` has another shape, or is a NumPy array with a negative number.

    >>> anchor = jaxreg.Anchor(0.5)
    >>> memory = anchor.init(jnp.array([1.0, 2.0]))
    >>> float(anchor(jnp.array([1.0, 4.0]), memory=memory))
    1.0

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017, for EWC; Li, Grandvalet and
    Davoine, Explicit inductive bias for transfer learning with convolutional networks, 2018, for L2-SP; Kumar, Marklund
    and Van Roy, Maintaining plasticity in continual learning via regenerative regularization, 2023, for L2-Init.
    """

    factor: Any = strength(0.01)

    _penalty, _prox, has_metric_prox = penalties.anchor, prox.anchor, True

    def init(self, x: jax.Array, *, importance: Any = None) -> Any:
        reference = as_floats(x)
        return reference if importance is None else (reference, _numbers_for(reference, importance, "importance"))

    def __call__(self, x: jax.Array, *, memory: Any = None) -> jax.Array:
        return self._scaled(penalties.anchor(x, **_remembered(memory, x)))

    def prox(self, x: jax.Array, step: Any, *, memory: Any = None) -> jax.Array:
        return prox.anchor(x, self._step(step), **_remembered(memory, x))

    def _is_separable(self) -> bool:
        return True


def _remembered(memory: Any, x: jax.Array) -> dict[str, Any]:
    """Returns the target of an anchor, and its importance if it has one."""
    if not hasattr(memory, "dtype") and (pair := in_order(memory, 2)) is not None:
        target, fisher = pair
        return {"target": fitting(target, x, "the reference from `init`"), "fisher": fitting(fisher, x, "importance")}
    return {"target": fitting(memory, x, "the reference from `init`, or it and its importance")}


def _numbers_for(x: jax.Array, numbers: Any, name: str) -> jax.Array:
    """Returns numbers >= 0 for the weights of an array, which are given for `init`."""
    if not hasattr(numbers, "dtype") or numbers.shape != x.shape:
        raise ValueError(f"`{name}` must have the shape of the array, {describe(x)}, got {describe(numbers)}")
    numbers = as_real(checked_number(numbers, name=name), name=name)
    return as_wide(numbers if jnp.issubdtype(numbers.dtype, jnp.floating) else numbers.astype(jnp.float32))


@public
class AdaptiveL1(Shipped):
    """The adaptive lasso, factor · Σ w|x|, whose weights w are small where a first fit is large.

    Under `jaxreg.proximal` it makes weights that were small exactly zero, and shrinks those that were large far less
    than `L1` does. Use it on a network that has been trained without a penalty, or with a weak one. The weights are
    kept as memory, and made at `init` of the array x₀ that is given there: w = 1/(|x₀| + ε)^γ. With
    `memory=rules.init(trained)` they come from other parameters, and with `memory=rules.init(params, weights=tree)`
    they are given.

    The array has any shape and a real floating-point dtype. The penalty is a scalar in at least float32, and the
    gradient and the prox have the dtype of the array. The memory is w, in the shape of the array and in at least
    float32. The transforms take it as `memory=` and keep it in their state, and so does `rules(params, memory=...)` in
    a loss. For a single array, `regularizer.init(x)` makes it. It stays as it is: for reweighted L1, call `init` again
    from time to time. The gradient is factor · w · sign(x), and 0 at a weight that is exactly 0. Nothing flows to the
    memory. The prox with step η sets weights up to η · factor · w to zero, and moves the others by that much.

    Args:
      factor: the strength, a number >= 0 or an array.
      gamma: γ, how much the sizes of the first fit count, a number >= 0 or an array. With 0 it is L1. Neither this nor
        `epsilon` may be a schedule.
      epsilon: ε, which bounds the weights, a number > 0 or an array, in the unit of the weights of the network.

    Raises:
      TypeError, ValueError: `factor` or `gamma` is not a finite number >= 0, or `epsilon` is not one > 0. When called:
        `memory` is missing or has another shape. On `init`: `weights` has another shape, or is a NumPy array with a
        negative number.

    >>> adaptive = jaxreg.AdaptiveL1(0.5, epsilon=0.5)
    >>> memory = adaptive.init(jnp.array([1.5, -0.5]))
    >>> adaptive.prox(jnp.array([1.5, -0.5]), 1.0, memory=memory)
    Array([1.25, 0.  ], dtype=float32)

    Source: Zou, The adaptive lasso and its oracle properties, 2006; Candès, Wakin and Boyd, Enhancing sparsity by
    reweighted ℓ1 minimization, 2008, for weights that are made again.
    """

    factor: Any = strength(0.01)
    gamma: Any = number(1.0)
    epsilon: Any = number(1e-3, above=0.0)

    _penalty, _prox, has_metric_prox = penalties.weighted_l1, prox.weighted_l1, True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in set(self._schedules()) - {"factor"}:
            shown = brief(getattr(self, name))
            raise TypeError(f"`{name}` must be a number, because only `init` reads it, got the schedule {shown}")

    def init(self, x: jax.Array, *, weights: Any = None) -> jax.Array:
        x = as_floats(x)
        if weights is not None:
            return _numbers_for(x, weights, "weights")
        wide = as_wide(x)
        gamma, epsilon = option(self.gamma, wide, name="gamma"), self.epsilon
        bounded = jnp.abs(wide) + option(epsilon, wide, name="epsilon", above=0.0)
        # An infinite weight would make NaN of a zero.
        return jnp.minimum(bounded**-gamma, np.finfo(wide.dtype).max)

    def __call__(self, x: jax.Array, *, memory: Any = None) -> jax.Array:
        return self._scaled(penalties.weighted_l1(x, weights=fitting(memory, x, "the weights from `init`")))

    def prox(self, x: jax.Array, step: Any, *, memory: Any = None) -> jax.Array:
        weights = fitting(memory, x, "the weights from `init`")
        return prox.weighted_l1(x, self._step(step), weights=weights)

    def _is_separable(self) -> bool:
        return True
