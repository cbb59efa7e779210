"""Penalties of a convolution as a linear map of images."""

import jax
from jax.typing import ArrayLike

from jaxreg._convolution import checked_stride, convolution
from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg._numerics import as_wide
from jaxreg._plans import Precision, check_precision
from jaxreg._spread import penalty_of_whole


@public
def conv_orthogonal(
    x: ArrayLike,
    *,
    stride: int = 1,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    precision: Precision = None,
) -> jax.Array:
    """Returns ‖conv(K, K) − I‖², the distance of a convolution from orthonormal rows, or columns where these are fewer.

    The gradient is 4(conv(K, K) − I) applied to K, a transposed convolution. See `jaxreg.ConvOrthogonal`.

    >>> kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1, 0, 0].set(2.0)
    >>> float(jaxreg.penalties.conv_orthogonal(kernel))
    9.0
    """
    stride = checked_stride(stride)
    check_precision(precision)
    x = as_wide(x)
    return penalty_of_whole(convolution(x, stride, in_axis, out_axis, batch_axis, precision), x)
