"""Penalties that are norms of groups of weights."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg._matrix import Axes, within_groups
from jaxreg._numerics import as_wide, magnitude, norms, number, scaled


def group_lasso(
    x: ArrayLike, *, group_axis: Axes = -1, batch_axis: Axes = (), size_weighted: bool = False
) -> jax.Array:
    """Sum of the norms of groups: Σ_g ‖x_g‖, each index along `group_axis` being one group.

    The default, −1, makes a group of each unit of a Dense kernel `(in, out)` and of each filter of a convolution HWIO;
    `group_axis=-2` one of each input channel, `(0, 1)` one of each head and dimension of `(heads, head_dim, out)`.

    The gradient of a group is x_g/‖x_g‖; at a group of zeros it is 0.

    Args:
      x: a real floating-point array of rank >= 1.
      group_axis: the axis or axes whose indices count groups; a norm runs over all the others.
      batch_axis: further axes that count groups, such as layers stacked by `nn.scan`.
      size_weighted: whether each norm is multiplied by √(weights in a group), so that groups of arrays of several
        shapes are penalized alike.

    Returns:
      A scalar: float64 for a float64 `x`, float32 for everything narrower.

    Raises:
      TypeError: `x` is not a real floating-point array, or an axis is not an int.
      ValueError: an axis is out of range or named twice.

    >>> kernel = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    >>> float(jaxreg.penalties.group_lasso(kernel))
    5.0
    >>> jax.grad(jaxreg.penalties.group_lasso)(kernel)
    Array([[0.6, 0. ],
           [0.8, 0. ]], dtype=float32)

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.
    """
    x = as_wide(x)
    axes, weight = within_groups(x, group_axis, batch_axis, size_weighted)
    factor, root = norms(x, axes)
    return weight * jnp.sum(factor * root)


def sparse_group_lasso(
    x: ArrayLike,
    *,
    l1: ArrayLike = 1.0,
    group: ArrayLike = 1.0,
    group_axis: Axes = -1,
    batch_axis: Axes = (),
    size_weighted: bool = False,
) -> jax.Array:
    """l1 · Σ|x| + group · Σ_g ‖x_g‖: zero groups, and zero weights in the others.

    Args:
      x: a real floating-point array of rank >= 1.
      l1: the weight of Σ|x|, a number >= 0.
      group: the weight of Σ_g ‖x_g‖, a number >= 0.
      group_axis, batch_axis, size_weighted: as in `group_lasso`.

    Returns, gradients and errors are those of `group_lasso`.

    Raises:
      TypeError, ValueError: `l1` or `group` is not a number >= 0.

    >>> float(jaxreg.penalties.sparse_group_lasso(jnp.array([[3.0, 0.0], [4.0, 0.0]]), l1=0.5))
    8.5

    Source: Simon, Friedman, Hastie and Tibshirani, A sparse-group lasso, 2013.
    """
    x = as_wide(x)
    groups = group_lasso(x, group_axis=group_axis, batch_axis=batch_axis, size_weighted=size_weighted)
    absolute = scaled(number(l1, x, name="l1"), jnp.sum(magnitude(x)), name="l1")
    return absolute + scaled(number(group, x, name="group"), groups, name="group")


def linf(x: ArrayLike) -> jax.Array:
    """The largest magnitude: max|x|, of no weights 0.

    The gradient is sign(x) at the largest weight, in equal parts where several are; at a zero array it is 0.

    Args:
      x: a real floating-point array of any shape.

    Returns, dtypes and errors are those of `l1`.

    >>> float(jaxreg.penalties.linf(jnp.array([1.0, -2.0, 0.0])))
    2.0

    Source: Parikh and Boyd, Proximal algorithms, 2014.
    """
    return jnp.max(magnitude(as_wide(x)), initial=0.0)
