"""Penalties of the products of the vectors of matrices, which are not normalized and may be divided over a mesh.

They are of degree four in large weights. Their passes run at weights of at most about 1, whose fourth power fits, and
value and gradient are brought back step by step, so that what is 0 stays 0 where a factor alone would overflow.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._angles import over_batch
from jaxreg._gram import Element, Pass, pass_over_products
from jaxreg._matrix import Layout
from jaxreg._numerics import Over, magnitude, nothing, peak, root, sum_of
from jaxreg._plans import Plan, Precision, by_platform, of_one_kind
from jaxreg._shards import Names, total, varying
from jaxreg._spread import Unit

# Without a degree, the value comes from the squares. What follows from the sums is a difference of larger terms.
SQUARE = Element(jnp.square, lambda product: 2 * product)

LARGE = 2.0**20  # the squares of smaller weights, and the squares of their sums, fit in float32


def below_large(x: jax.Array, unit: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Returns `x` times a unit <= 1 over a constant, and the constant: the largest magnitude where that is large."""
    size = magnitude(lax.stop_gradient(x))
    most = peak(size, Over(tuple(range(x.ndim)), tuple(sorted(varying(x)))), 0.0).reshape(())
    factor = jnp.where(most * unit > LARGE, most, jnp.ones_like(most))
    factor = jnp.minimum(factor, unit / float(np.finfo(x.dtype).tiny))  # hardware takes smaller quotients for 0
    return x * (unit / factor), factor


def _root_near(divisor: int) -> tuple[float, float]:
    """Returns a power of two near 1/√divisor, and what squares of products of numbers times it are to be divided by."""
    unit = 2.0 ** -round(math.log2(divisor) / 2)
    return unit, (divisor * unit**2) ** 2


def times(x: jax.Array, factor: jax.Array, count: int) -> jax.Array:
    """Returns x · factor^count, without a power that overflows where the result is 0."""
    for _ in range(count):
        x = x * factor
    return x


def times_finite(x: jax.Array, factor: jax.Array, count: int) -> jax.Array:
    """Returns the same for a gradient, with the largest number where it overflows: a strength of 0 makes 0 of it."""
    most = jnp.asarray(np.finfo(x.dtype).max, x.dtype)
    result = jnp.clip(times(x, factor, count), -most, most)
    return jnp.where(jnp.isfinite(x), result, x)


@dataclasses.dataclass(frozen=True)
class OffDiagonal:
    """The job of Σ_{i≠j} (⟨x_i, x_j⟩ / over)² over vectors for a device."""

    precision: Precision = None
    over: int = 1

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> Pass:
        if layout.sizes[1] < 2:
            return sum_of(nothing(x)), nothing(x)
        unit, rest = _root_near(self.over)
        x, factor = below_large(x, unit)

        def one(x: jax.Array, axis: int) -> Pass:
            def one_pass(plan: Plan, x: jax.Array) -> Pass:
                return pass_over_products(axis, SQUARE, graded, plan, x, ring=ring)

            return by_platform(one_pass, x, axis, self.precision, None)

        values, gradients = over_batch(one, x, layout)
        value = times(sum_of(values) / rest, factor, 4)
        if not graded:
            return value, None
        return value, times_finite(jnp.moveaxis(gradients, 0, layout.batch) * (unit / rest), factor, 3)


@dataclasses.dataclass(frozen=True)
class OffDiagonalOfComponents:
    """The job of the same sum over components, from the products of fewer vectors, for a device.

    It is ‖XXᵀ‖² minus the squares on the diagonal of XᵀX, beside which it is rounded.
    """

    precision: Precision = None
    over: int = 1

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> Pass:
        unit, rest = _root_near(self.over)
        x, factor = below_large(x, unit)
        product = functools.partial(lax.dot_general, precision=of_one_kind(self.precision))

        def one(x: jax.Array, axis: int) -> Pass:
            # Each device compares its own vectors with all of them.
            others = lax.all_gather(x, ring, axis=axis, tiled=True) if ring else x
            gram = product(x, others, (((1 - axis,), (1 - axis,)), ((), ())))
            own = sum_of(jnp.square(x), axis)
            diagonal = total(own, ring)
            value = sum_of(jnp.square(gram)) - sum_of(own * diagonal)
            if not graded:
                return value, None
            gradient = product(gram, others, (((1,), (axis,)), ((), ())))
            return value, 4 * ((gradient if axis == 0 else gradient.T) - x * diagonal)

        values, gradients = over_batch(one, x, layout)
        value = times(sum_of(values) / rest, factor, 4)
        if not graded:
            return value, None
        return value, times_finite(jnp.moveaxis(gradients, 0, layout.batch) * (unit / rest), factor, 3)


@dataclasses.dataclass(frozen=True)
class FromIdentity:
    """The job of ‖XᵀX − I‖², or its root, for a device. XᵀX has the components of the vectors, the smaller side.

    A device has some of the vectors. Their products meet in a matrix that every device has.
    """

    squared: bool = True
    precision: Precision = None

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> Pass:
        x, factor = below_large(x)
        least = 1 / factor  # of a length that is 1
        precision = of_one_kind(self.precision)

        def one(x: jax.Array, axis: int) -> Pass:
            product = functools.partial(lax.dot_general, precision=precision)
            gram = total(product(x, x, (((axis,), (axis,)), ((), ()))), ring)
            apart = gram - least * least * jnp.eye(len(gram), dtype=x.dtype)
            squares = sum_of(jnp.square(apart))
            length = root(squares)
            value = times(squares, factor, 4) if self.squared else times(length, factor, 2)
            if not graded:
                return value, None
            gradient = product(x, apart, (((1 - axis,), (0,)), ((), ())))  # 4X(XᵀX − I), for squares
            gradient = gradient if axis == 0 else gradient.T
            if self.squared:
                return value, times_finite(4 * gradient, factor, 3)
            return value, times_finite(2 * gradient / jnp.where(length == 0, jnp.ones_like(length), length), factor, 1)

        values, gradients = over_batch(one, x, layout)
        return sum_of(values), jnp.moveaxis(gradients, 0, layout.batch) if graded else None
