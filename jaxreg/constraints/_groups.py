"""Constraints of groups of weights, by their norms or sums."""

from typing import Any

import jax

from jaxreg import _projections as projections
from jaxreg._fields import axes, number
from jaxreg._matrix import Axes, as_tuple
from jaxreg._names import public
from jaxreg.constraints._shipped import Shipped


@public
class MaxNorm(Shipped):
    """The groups with ‖x_g‖ ≤ max_value: a longer one is scaled down. Each index along `group_axis` is one group.

    Use it to bound how strongly a unit can react, as with dropout.

    The array has a rank >= 1 and a real floating-point dtype, and comes back in both. Norms are taken in at least
    float32, without overflow. A group whose norm is at most 4 units in the last place above the bound is inside, and
    comes back to the bit. The gradient through the projection is the identity inside, and for a group outside it has
    no part along the group. NaN and infinity show in their group.

    Args:
      max_value: the largest norm, a number >= 0 or an array.
      group_axis: the axis or axes whose indices count groups. A norm runs over all the other axes, so that each unit of
        a Dense kernel `(in, out)` and each filter of a convolution `HWIO` is a group by default. With `()` the whole
        array is one group. Keras's `axis` names the other axes, those within a group.
      batch_axis: further axes that count groups, such as that of layers stacked by `nn.scan`.

    Raises:
      TypeError: `max_value` is not a number, an axis is not an int, or Keras's `axis` is given.
      ValueError: `max_value` is negative or not finite. When called: an axis is out of range or named twice.

    >>> jaxreg.constraints.MaxNorm(1.0)(jnp.array([[3.0, 0.3], [4.0, 0.4]]))
    Array([[0.6, 0.3],
           [0.8, 0.4]], dtype=float32)

    Source: Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014;
    `keras.constraints.MaxNorm`.
    """

    max_value: Any = number(2.0, kw_only=False)
    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    def __call__(self, x: jax.Array) -> jax.Array:
        high = projections.norm_bound(x, self._number("max_value"), name="max_value")
        return projections.norm_between(x, None, high, group_axis=self.group_axis, batch_axis=self.batch_axis)

    def _norm_groups(self) -> Any:
        return as_tuple(self.group_axis), as_tuple(self.batch_axis)


@public
class UnitNorm(Shipped):
    """The groups with ‖x_g‖ = radius: each is scaled to that norm.

    A group of zeros stays zero, since no direction is better than another one. Use it where only the direction of a
    unit matters, such as for embeddings that are compared by their cosines.

    Groups, shapes and dtypes are those of `MaxNorm`. A group whose norm is within 4 units in the last place of the
    radius comes back to the bit. The gradient through the projection has no part along the group.

    Args:
      radius: the norm, a number > 0 or an array.
      group_axis, batch_axis: as in `MaxNorm`.

    Raises:
      TypeError, ValueError: as `MaxNorm` does, and `radius` is 0.

    >>> jaxreg.constraints.UnitNorm()(jnp.array([[3.0, 0.0], [4.0, 0.0]]))
    Array([[0.6, 0. ],
           [0.8, 0. ]], dtype=float32)

    Source: `keras.constraints.UnitNorm`, 2015.
    """

    radius: Any = number(1.0, above=0.0, kw_only=False)
    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    def __call__(self, x: jax.Array) -> jax.Array:
        radius = projections.norm_bound(x, self._number("radius"), name="radius", above=0.0)
        return projections.norm_between(x, radius, radius, group_axis=self.group_axis, batch_axis=self.batch_axis)


@public
class MinMaxNorm(Shipped):
    """The groups with min_value ≤ ‖x_g‖ ≤ max_value: others are scaled to the nearer end, or a share `rate` of the way.

    With `rate` < 1 one call does not reach the set. The norm becomes rate · clip(‖x_g‖) + (1 − rate) · ‖x_g‖, as in
    Keras, so it takes several steps.

    Groups, shapes and dtypes are those of `MaxNorm`, and so is what counts as inside. A group of zeros stays zero,
    since no direction is better than another one. The gradient through the projection is the identity inside, and for
    a group outside it has no part along the group where `rate` is 1.

    Args:
      min_value: the least norm, a number >= 0 or an array.
      max_value: the largest norm, a number >= 0 or an array.
      rate: the share of the way to the set, a number from 0 to 1 or an array.
      group_axis, batch_axis: as in `MaxNorm`.

    Raises:
      TypeError, ValueError: as `MaxNorm` does, `min_value` is greater than `max_value`, or `rate` is above 1.

    >>> jaxreg.constraints.MinMaxNorm(1.0, 2.0)(jnp.array([[3.0, 0.3], [4.0, 0.4]]))
    Array([[1.2, 0.6],
           [1.6, 0.8]], dtype=float32)

    Source: `keras.constraints.MinMaxNorm`, 2017.
    """

    min_value: Any = number(0.0, kw_only=False)
    max_value: Any = number(1.0, kw_only=False)
    rate: Any = number(1.0, most=1.0, kw_only=False)
    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _in_order = ("min_value", "max_value")

    def __call__(self, x: jax.Array) -> jax.Array:
        low, high = (projections.norm_bound(x, self._number(n), name=n) for n in ("min_value", "max_value"))
        rate = self._number("rate")
        return projections.norm_between(x, low, high, group_axis=self.group_axis, batch_axis=self.batch_axis, rate=rate)


@public
class KeepNorm(Shipped):
    """The groups with the norms that they had at the start: each is scaled back to its own, which is kept as memory.

    Use it to train directions alone, so that the norms neither grow nor have to be decayed. With updates of a fixed
    length relative to the norm it is a hyperball optimizer: see `examples/hyperball.py`. A group that is zero at the
    start stays zero, and one that becomes zero stays there, since no direction is better than another one.

    Groups, shapes and dtypes are those of `MaxNorm`. The memory is the norm of each group, in at least float32, in the
    shape of the array with size 1 along the axes within a group. The transforms make it at `init`. Elsewhere
    `rules.init(params)` makes it, and for a single array `constraint.init(x)`. The gradient through the projection has
    no part along the group.

    Args:
      group_axis, batch_axis: as in `MaxNorm`. With `group_axis=()` the norm of the whole array is kept.

    Raises:
      TypeError: an axis is not an int, or Keras's `axis` is given.
      ValueError: When called: `memory` is missing or has another shape, or an axis is out of range or named twice.

    >>> keep = jaxreg.constraints.KeepNorm()
    >>> norms = keep.init(jnp.array([[3.0], [4.0]]))
    >>> keep(jnp.array([[0.0], [2.0]]), memory=norms)
    Array([[0.],
           [5.]], dtype=float32)

    Source: Salimans and Kingma, Weight normalization, 2016, for norms and directions apart; arXiv 2606.16899, 2026, for
    the hyperball.
    """

    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    def init(self, x: jax.Array) -> jax.Array:
        return projections.group_norms(x, group_axis=self.group_axis, batch_axis=self.batch_axis)

    def __call__(self, x: jax.Array, *, memory: Any = None) -> jax.Array:
        norms = projections.kept_norms(x, memory, group_axis=self.group_axis, batch_axis=self.batch_axis)
        return projections.norm_between(x, norms, norms, group_axis=self.group_axis, batch_axis=self.batch_axis)


@public
class Simplex(Shipped):
    """The groups with weights >= 0 and Σx = radius: the nearest one is (x − θ)₊ for one number θ.

    Use it for weights that are shares or probabilities, such as those of a mixture. With the default axes each unit's
    incoming weights are one group, and `group_axis=()` takes the whole array, as for a vector.

    Groups, shapes and dtypes are those of `MaxNorm`. Groups of k weights whose sum is within 4√k units in the last
    place of the radius come back to the bit, if none is negative. The gradient through the projection is that of
    x − mean(x) over the weights that stay positive, and 0 for the others. NaN and infinity show in their group.

    Args:
      radius: the sum, a number > 0 or an array.
      group_axis, batch_axis: as in `MaxNorm`.

    Raises:
      TypeError, ValueError: as `UnitNorm` does.

    >>> print(jaxreg.constraints.Simplex(group_axis=())(jnp.array([0.5, 1.0, -3.0])).round(4))
    [0.25 0.75 0.  ]

    Source: Duchi et al., Efficient projections onto the l1-ball for learning in high dimensions, 2008; Michelot, A
    finite algorithm for finding the projection of a point onto the canonical simplex of Rⁿ, 1986.
    """

    radius: Any = number(1.0, above=0.0, kw_only=False)
    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _projection = projections.simplex


@public
class L1Ball(Shipped):
    """The groups with Σ|x| ≤ radius: all weights of a larger one move towards 0 by one number, and stop at 0.

    It makes weights exactly zero, with a bound in place of the strength of `jaxreg.L1`. Use it where the sum of
    magnitudes is to be known beforehand.

    Groups, shapes and dtypes are those of `MaxNorm`. Groups of k weights whose sum is at most 4√k units in the last
    place above the radius come back to the bit. The gradient through the projection is the identity inside. Outside it
    has no part along sign(x), and is 0 for weights that become 0. NaN and infinity show in their group.

    Args:
      radius: the largest sum of magnitudes, a number >= 0 or an array.
      group_axis, batch_axis: as in `MaxNorm`.

    Raises:
      TypeError, ValueError: as `MaxNorm` does.

    >>> print(jaxreg.constraints.L1Ball(2.0, group_axis=())(jnp.array([3.0, -0.5, -2.0])).round(4))
    [ 1.5  0.  -0.5]

    Source: Duchi et al., Efficient projections onto the l1-ball for learning in high dimensions, 2008.
    """

    radius: Any = number(1.0, kw_only=False)
    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    _projection = projections.l1_ball
