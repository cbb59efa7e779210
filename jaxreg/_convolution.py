"""The distance of a convolution from an orthogonal map, computed from its kernel.

A convolution is a linear map of images. Its rows are the kernel, shifted by the stride. They are orthonormal where the
kernel convolved with itself, at the same stride, is the identity in the middle and 0 beside it. Products are taken
shift by shift, for every shift at which two copies overlap. The opposite shift has the same products, so half of them
are enough, and there are no zeros with which a convolution would be padded.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._checks import describe
from jaxreg._matrix import Axes, check_disjoint, positive_axes
from jaxreg._numerics import sum_of
from jaxreg._plans import Precision, of_one_kind
from jaxreg._products import below_large, times, times_finite
from jaxreg._shards import whole_shape


def checked_stride(stride: Any) -> int:
    if not isinstance(stride, int | np.integer) or isinstance(stride, bool):
        raise TypeError(f"`stride` must be an int, got {describe(stride)}")
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1, got {stride}")
    return int(stride)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """How an array holds kernels, and how far they are from orthogonal convolutions. The axes count from the front."""

    stride: int
    batch: tuple[int, ...]
    spatial: tuple[int, ...]
    inputs: int
    outputs: int
    precision: Precision = None

    def value_and_gradient(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns Σ ‖Z − I‖² over the kernels of a whole array, and its gradient."""
        order = (*self.batch, *self.spatial, self.inputs, self.outputs)
        x, factor = below_large(x)
        seen = x.transpose(order)
        kernels = seen.reshape(math.prod(seen.shape[: len(self.batch)]), *seen.shape[len(self.batch) :])

        def value(kernels: jax.Array) -> jax.Array:
            return sum_of(jax.vmap(lambda kernel: self._of_one(kernel, 1 / factor))(kernels))

        found, gradient = jax.value_and_grad(value)(kernels)
        gradient = gradient.reshape(seen.shape).transpose(np.argsort(order).tolist())
        return times(found, factor, 4), times_finite(gradient, factor, 3)

    def _of_one(self, kernel: jax.Array, unit: jax.Array) -> jax.Array:
        """Returns ‖Z − unit² I‖² for a kernel (..., in, out), less the least value that it can have."""
        *sizes, inputs, outputs = kernel.shape
        if max(sizes) <= self.stride:
            # No copies overlap, and the kernel is a matrix.
            kernel = kernel.reshape(*(1 for _ in sizes), math.prod(sizes) * inputs, outputs)
            *sizes, inputs, outputs = kernel.shape
        if outputs > inputs and (self.stride == 1 or max(sizes) == 1):
            # Then the columns can be orthonormal, which are the rows of the convolution from the outputs to the inputs.
            kernel, inputs, outputs = jnp.swapaxes(kernel, -1, -2), outputs, inputs
        most = inputs * math.prod(min(size, self.stride) for size in sizes)  # so many rows can be orthonormal
        reach = [max(size - 1, 0) // self.stride for size in sizes]
        shifts = itertools.product(*(range(-r, r + 1) for r in reach))
        target = unit * unit * jnp.eye(outputs, dtype=kernel.dtype)
        # Products at a shift are those at the opposite one, transposed.
        parts = [sum_of(jnp.square(self._products(kernel, (0,) * len(sizes)) - target))]
        parts += [2 * sum_of(jnp.square(self._products(kernel, s))) for s in shifts if s > (0,) * len(sizes)]
        return functools.reduce(jnp.add, parts) - max(0, outputs - most) * jnp.square(unit * unit)

    def _products(self, kernel: jax.Array, shift: tuple[int, ...]) -> jax.Array:
        """Returns the products of all filters with all filters that are shifted by multiples of the stride."""
        one, other = kernel, kernel
        for axis, (steps, size) in enumerate(zip(shift, kernel.shape, strict=False)):
            by = steps * self.stride
            one = lax.slice_in_dim(one, max(by, 0), size + min(by, 0), axis=axis)
            other = lax.slice_in_dim(other, max(-by, 0), size + min(-by, 0), axis=axis)
        over = tuple(range(kernel.ndim - 1))
        return lax.dot_general(one, other, ((over, over), ((), ())), precision=self.precision)


def convolution(
    x: Any, stride: int, in_axis: Axes, out_axis: Axes, batch_axis: Axes, precision: Precision
) -> Convolution:
    """Returns how the axes of an array are those of kernels, or raises an error."""
    if x.ndim < 3:
        raise ValueError(f"`x` must have rank >= 3 to be the kernel of a convolution, got {describe(x)}")
    named = {}
    for name, axis in (("in_axis", in_axis), ("out_axis", out_axis)):
        named[name] = positive_axes(axis, x.ndim, name=name)
        if len(named[name]) != 1:
            raise ValueError(f"`{name}` must be one axis, got {axis}")
    batch = positive_axes(batch_axis, x.ndim, name="batch_axis")
    for name, axes in named.items():
        check_disjoint(axes, batch, x, name=name)
    if named["in_axis"] == named["out_axis"]:
        raise ValueError(f"`in_axis` and `out_axis` must be two axes, got {in_axis} and {out_axis} for rank {x.ndim}")
    taken = batch + named["in_axis"] + named["out_axis"]
    spatial = tuple(axis for axis in range(x.ndim) if axis not in taken)
    if not spatial:
        raise ValueError(f"`batch_axis` {batch_axis} leaves no axis of {describe(x)} for the space of a convolution")
    return Convolution(stride, batch, spatial, named["in_axis"][0], named["out_axis"][0], of_one_kind(precision))


def seen_in(x: Any, in_axis: Axes, out_axis: Axes, batch_axis: Axes) -> str:
    """Returns which kernels are seen in an array, such as "kernel 3×3, 16 → 32"."""
    shape = whole_shape(x)
    found = convolution(x, 1, in_axis, out_axis, batch_axis, None)
    count = math.prod(shape[axis] for axis in found.batch)
    size = "×".join(str(shape[axis]) for axis in found.spatial)
    many = f"{count} kernels" if found.batch else "kernel"
    return f"{many} {size}, {shape[found.inputs]} → {shape[found.outputs]}"
