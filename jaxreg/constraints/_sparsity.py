"""Constraints of which weights are zero."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxreg import _projections as projections
from jaxreg._checks import checked_count
from jaxreg._evaluate import fitting
from jaxreg._fields import axes, number, static
from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg._numerics import as_floats
from jaxreg.constraints._shipped import Shipped


@public
class Sparsity(Shipped):
    """The arrays with at least round(fraction · n) zeros among n weights: the smallest magnitudes become 0.

    Use it to prune to a given share. With a schedule as fraction the share grows during training. That of gradual
    pruning is cubic, `optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=10_000, transition_begin=1_000)`.
    Zeros are chosen anew at each step. To keep those at hand, such as for fine-tuning afterwards, use `KeepZeros`.

    The array has any shape and a real floating-point dtype, and comes back in both. The count is exact. Of equal
    magnitudes the first in the array become 0, so ties are broken in the same way each time. An array with enough zeros
    comes back to the bit. The gradient through the projection is 1 for weights that stay and 0 for others. A NaN and an
    infinity count as the largest, and show.

    There is no sort: the level is found by counting, in some ten passes over the weights. On CPUs XLA keeps up to two
    copies of the array meanwhile. On a mesh, counts are added up over devices, and nothing is gathered.

    Args:
      fraction: the share of zeros, a number from 0 to 1, an array or a schedule. The product with n is exact for a
        number, and to the rounding of its dtype where the fraction is traced.
      batch_axis: the axis or axes that count independent arrays, such as layers stacked by `nn.scan`. Each has its own
        round(fraction · n) zeros.

    Raises:
      TypeError, ValueError: `fraction` is not a number from 0 to 1, or an axis is not an int. When called: an axis is
        out of range or named twice, or there are 2³¹ weights or more.

    >>> jaxreg.constraints.Sparsity(0.5)(jnp.array([3.0, -0.5, -2.0, 1.0]))
    Array([ 3.,  0., -2.,  0.], dtype=float32)

    Source: Zhu and Gupta, To prune, or not to prune, 2017; Han et al., Learning both weights and connections, 2015.
    """

    fraction: Any = number(0.5, most=1.0, kw_only=False)
    batch_axis: Axes = axes(())

    def __call__(self, x: jax.Array) -> jax.Array:
        return projections.sparse(x, fraction=self._number("fraction"), batch_axis=self.batch_axis)


@public
class GroupSparsity(Shipped):
    """The arrays with at least round(fraction · groups) groups of zeros: those with the smallest norms become 0.

    Use it to remove a given share of units, filters or heads. The fraction may be a schedule, as in `Sparsity`.

    Groups, shapes and dtypes are those of `MaxNorm`, and counts, ties and the gradient through the projection are as in
    `Sparsity`. It takes a pass or two for the norms, and some ten over these.

    Args:
      fraction: the share of groups, a number from 0 to 1, an array or a schedule.
      group_axis: the axis or axes whose indices count groups. A norm runs over all the other axes.
      batch_axis: the axis or axes that count independent arrays. Each has its own round(fraction · groups).

    Raises:
      TypeError, ValueError: as `Sparsity` does.

    >>> jaxreg.constraints.GroupSparsity(0.5)(jnp.array([[3.0, 0.3], [4.0, 0.4]]))
    Array([[3., 0.],
           [4., 0.]], dtype=float32)

    Source: Li et al., Pruning filters for efficient ConvNets, 2017.
    """

    fraction: Any = number(0.5, most=1.0, kw_only=False)
    group_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())

    def __call__(self, x: jax.Array) -> jax.Array:
        fraction = self._number("fraction")
        return projections.group_sparse(x, fraction=fraction, group_axis=self.group_axis, batch_axis=self.batch_axis)


@public
class NM(Shipped):
    """The arrays with at most n weights that are not zero in each m neighbors: the n largest magnitudes stay.

    2:4 along the inputs of a layer is what sparse tensor cores can multiply at twice the speed.

    The array has a rank >= 1 and a real floating-point dtype, and comes back in both. Of equal magnitudes the first
    stay. Blocks that hold the set come back to the bit. The gradient through the projection is 1 for weights that stay
    and 0 for others. A NaN and an infinity count as the largest, and show. It takes m comparisons for each weight.

    Args:
      n: how many stay, an int >= 0.
      m: the size of a block, an int >= n and >= 1.
      axis: the axis along which the neighbors lie. `-2` are the inputs of a Dense kernel and of a convolution, whose
        products are summed. For an Equinox kernel `(out, in)` it is `-1`.

    Raises:
      TypeError, ValueError: `n`, `m` or `axis` is not an int in its range. When called: the axis is out of range, or
        its size is no multiple of `m`.

    >>> jaxreg.constraints.NM(1, 2, axis=0)(jnp.array([3.0, -0.5, -2.0, 4.0]))
    Array([3., 0., 0., 4.], dtype=float32)

    Source: Mishra et al., Accelerating sparse deep neural networks, 2021.
    """

    n: int = static(2, kw_only=False)
    m: int = static(4, kw_only=False)
    axis: int = static(-2)

    _projection = projections.n_of_m

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("n", 0), ("m", 1), ("axis", None)):
            object.__setattr__(self, name, checked_count(getattr(self, name), name=name, least=least))
        if self.n > self.m:
            raise ValueError(f"`n` must be at most `m`, got {self.n} and {self.m}")


@public
class KeepZeros(Shipped):
    """The arrays that are 0 where they were 0 at the start: these places are kept as memory.

    Use it to fine-tune a pruned network: its zeros stay, and all other weights are free.

    The array has any shape and a real floating-point dtype, and comes back in both. The memory is an array of bools of
    that shape, True where a weight may be other than 0. The transforms make it at `init`. Elsewhere
    `rules.init(params)` makes it, and for a single array `constraint.init(x)`. The gradient through the projection is
    the mask. A NaN or an infinity where a zero belongs comes back as NaN.

    Raises:
      ValueError: When called: `memory` is missing or has another shape.

    >>> keep = jaxreg.constraints.KeepZeros()
    >>> mask = keep.init(jnp.array([1.0, 0.0]))
    >>> keep(jnp.array([2.0, 3.0]), memory=mask)
    Array([2., 0.], dtype=float32)

    Source: Han et al., Learning both weights and connections, 2015.
    """

    def init(self, x: jax.Array) -> jax.Array:
        return as_floats(x) != 0

    def __call__(self, x: jax.Array, *, memory: Any = None) -> jax.Array:
        mask = fitting(memory, x, "a mask from `init`")
        if mask.dtype != jnp.bool_:
            raise ValueError(f"`memory` must be a mask of bools from `init`, got {mask.dtype}")
        return projections.keep_zeros(x, mask=mask)

    def _is_separable(self) -> bool:
        return True
