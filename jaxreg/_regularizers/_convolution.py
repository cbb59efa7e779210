"""Regularizers of a convolution as a linear map of images."""

from typing import Any

from jaxreg import penalties
from jaxreg._convolution import checked_stride, seen_in
from jaxreg._fields import axes, static, strength
from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg._plans import Precision, check_precision
from jaxreg._regularizers._shipped import Shipped


@public
class ConvOrthogonal(Shipped):
    """The distance of a convolution from an orthogonal map of images, factor · ‖conv(K, K) − I‖².

    A kernel whose filters are orthogonal is not an orthogonal convolution: copies of the filters that are shifted by
    the stride overlap too. This penalty is 0 where the convolution, as a matrix with a row for each filter at each
    place, has orthonormal rows, or orthonormal columns where these are fewer. The layer then keeps the lengths of
    gradients, or of its inputs. Use it where `SoftOrthogonal` of the kernel as a matrix is not enough. With a stride
    of the size of the kernel both are the same.

    The array is the kernel of a convolution over any number of axes of space, by default `HWIO`, with a real
    floating-point dtype. All further axes count space. The kernel is convolved with itself at the given stride, with
    padding ⌊(k−1)/stride⌋ · stride, and compared with the identity in the middle. N² times the value is ‖AAᵀ − I‖² for
    the matrix A of the convolution of a periodic image with N² places of output, if these are so many that the kernel
    does not meet itself around it. With C inputs, at most C · ∏ min(k, stride) rows can be orthonormal. Where there are
    more filters, the columns are compared: the form of the rows is greater than theirs by the number of filters that
    are too many, up to the rounding of that number. The penalty is a scalar in at least float32, and the gradient has
    the dtype of the array. There is no prox.

    A program has two products and more for each shift at which copies overlap, so large kernels at a small stride
    compile slowly: 7 × 7 at stride 1 takes some six seconds, and 11 × 11 twenty. The kernel of a grouped convolution
    holds several: reshape that of g groups to (k, k, C/g, g, M/g), with `in_axis=-3, batch_axis=-2`, in a function of
    your own.

    On a mesh every device gathers the kernel and works with all of it. The gradient is divided as the kernel.

    Args:
      factor: the strength, a number >= 0 or an array.
      stride: the stride of the layer, the same along all axes of space.
      in_axis, out_axis: the axes of the inputs and of the filters. Equinox and PyTorch have `OIHW`, which is
        `in_axis=1, out_axis=0`.
      batch_axis: the axis or axes that count independent kernels, whose penalties add up.
      precision: that of the products, as in `jax.lax.conv_general_dilated`. "cosines" means "highest" here.

    Raises:
      TypeError: `factor` is not a number, or `stride` or an axis is not an int.
      ValueError: `factor` is negative or not finite, `stride` is less than 1, or `precision` is none of JAX's nor
        "cosines". When called: the rank is below 3, an axis is out of range or named twice, or no axis is left for
        space.

    >>> kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1, 0, 0].set(2.0)
    >>> float(jaxreg.ConvOrthogonal(0.5)(kernel))
    4.5

    Source: Wang, Chen, Chakraborty and Yu, Orthogonal convolutional neural networks, 2020.
    """

    factor: Any = strength(0.01)
    stride: int = static(1)
    in_axis: Axes = axes(-2)
    out_axis: Axes = axes(-1)
    batch_axis: Axes = axes(())
    precision: Precision = static(None)

    _penalty = penalties.conv_orthogonal

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stride", checked_stride(self.stride))
        check_precision(self.precision)

    def _seen(self, x: Any) -> str:
        return seen_in(x, self.in_axis, self.out_axis, self.batch_axis)
