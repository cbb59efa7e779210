"""Penalties of the angles between the vectors of matrices, which may be divided over a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._checks import brief, describe
from jaxreg._gram import (
    ABSOLUTE,
    SQUARE,
    Element,
    Pass,
    are_more_than_components,
    frame_excess,
    mean_over_pairs,
    of_cosines,
    pass_over_cosines,
    unit_vectors,
)
from jaxreg._matrix import Kind, Layout, Matrices
from jaxreg._numerics import accumulation_dtype, largest, magnitude, nothing, sum_of
from jaxreg._plans import Plan, Precision, by_platform, of_one_kind
from jaxreg._shards import Names, as_varying, total, varying
from jaxreg._spread import Unit, dealt, own_place_of, own_places, value_of_shards

SMALLEST, GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
BLOCK = 1024  # so many rows of cosines are held at once where the largest is looked for
ONE_BY_ONE = 512  # matrices of a batch with more vectors than this do not go together


@dataclasses.dataclass(frozen=True)
class MeanOverPairs:
    """The penalty of matrices that is the sum of `mean_over_pairs`, where they may be divided."""

    precision: Precision = None
    sample: int | None = None
    element: Element = ABSOLUTE

    def __call__(self, matrices: Matrices, key: jax.Array | None = None) -> jax.Array:
        if self.sample is not None and key is not None:
            matrices = random_vectors(matrices, self.sample, key)
        x, layout = matrices
        if layout.is_divided:
            return value_of_shards(x, layout, PairsOfShards(self.element, self.precision))
        one = functools.partial(mean_over_pairs, element=self.element, precision=self.precision)
        return sum_of(over_batch(one, x, layout))


@dataclasses.dataclass(frozen=True)
class PairsOfShards:
    """The job of `mean_over_pairs` for a device."""

    element: Element
    precision: Precision

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> Pass:
        count = layout.sizes[1]
        if count < 2:
            zeros = nothing(x)
            return sum_of(zeros.astype(accumulation_dtype(x.dtype))), zeros

        def one(x: jax.Array, axis: int) -> Pass:
            def one_pass(plan: Plan, x: jax.Array) -> Pass:
                if not ring:
                    return of_cosines(axis, self.element, graded, plan, x)
                return pass_over_cosines(axis, self.element, graded, plan, x, ring=ring, count=count)

            return by_platform(one_pass, x, axis, self.precision, None)

        values, gradients = over_batch(one, x, layout)
        return sum_of(values), jnp.moveaxis(gradients, 0, layout.batch) if graded else None


@dataclasses.dataclass(frozen=True)
class ExcessOfFrames:
    """The penalty of matrices that is the sum of `frame_excess`, where they may be divided."""

    precision: Precision = None

    def __call__(self, matrices: Matrices) -> jax.Array:
        x, layout = matrices
        _, n, d = layout.sizes
        if not layout.is_divided:
            return sum_of(over_batch(functools.partial(frame_excess, precision=self.precision), x, layout))
        job = (
            FramesOfShards(self.precision) if are_more_than_components(n, d) else PairsOfShards(SQUARE, self.precision)
        )
        return value_of_shards(x, layout, job)


@dataclasses.dataclass(frozen=True)
class FramesOfShards:
    """The job of `frame_excess` for a device, for more vectors than components."""

    precision: Precision

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> Pass:
        _, n, d = layout.sizes
        precision = of_one_kind(self.precision)

        def excess(x: jax.Array, axis: int) -> jax.Array:
            # The components meet over all vectors, in a matrix that every device has.
            units = unit_vectors(x.astype(accumulation_dtype(x.dtype)), axis)
            gram = total(lax.dot_general(units, units, (((axis,), (axis,)), ((), ())), precision=precision), ring)
            apart = gram - n / d * jnp.eye(d, dtype=gram.dtype)
            return sum_of(jnp.square(apart)) / float(n * (n - 1))

        def value(x: jax.Array) -> jax.Array:
            return sum_of(over_batch(excess, x, layout))

        return jax.value_and_grad(value)(x) if graded else (value(x), None)


@dataclasses.dataclass(frozen=True)
class Coherence:
    """The job of max_{i≠j} |cos(x_i, x_j)| for a device, or with a sharpness t of (1/t) log Σ_{i≠j} exp(t |cos|).

    Rows of cosines are made block by block: first for their maximum, then for the weight of each pair in the gradient.
    """

    sharpness: float | None = None
    precision: Precision = None

    unit: ClassVar[Unit] = "vectors"

    def __call__(self, x: jax.Array, layout: Layout, ring: Names, graded: bool) -> Pass:
        if layout.sizes[1] < 2 or not layout.sizes[2]:
            return sum_of(nothing(x)), nothing(x)
        values, gradients = over_batch(functools.partial(self._of_one, layout.sizes[1], ring, graded), x, layout)
        return sum_of(values), jnp.moveaxis(gradients, 0, layout.batch) if graded else None

    def _of_one(self, count: int, ring: Names, graded: bool, x: jax.Array, axis: int) -> Pass:
        units, back = jax.vjp(functools.partial(unit_vectors, axis=axis), x)
        others = lax.all_gather(units, ring, axis=axis, tiled=True) if ring else units
        n, met = units.shape[axis], others.shape[axis]
        size = min(n, BLOCK)
        first = lax.axis_index(ring) * n if ring else 0
        precision = of_one_kind(self.precision)

        def cosines(units: jax.Array, others: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Returns the cosines of a block, and which are of pairs that no block before has had."""
            begin = jnp.minimum(start, n - size)  # the last block begins earlier, so that it ends with the last vector
            block = units if size == n else lax.dynamic_slice_in_dim(units, begin, size, axis)
            found = lax.dot_general(block, others, (((1 - axis,), (1 - axis,)), ((), ())), precision=precision)
            place = begin + jnp.arange(size)[:, None]
            return found, (place >= start) & (first + place != jnp.arange(met)[None, :])

        def largest_of(start: jax.Array) -> jax.Array:
            found, is_new = cosines(*lax.stop_gradient((units, others)), start)
            return largest(jnp.where(is_new, magnitude(found), jnp.zeros_like(found)))

        starts = jnp.arange(0, n, size)
        # A single block is in no loop, because JAX cannot map one over an axis that an Explicit mesh divides.
        top = largest_of(starts[0]) if size == n else largest(lax.map(largest_of, starts))
        top = lax.pmax(top, ring) if ring else top
        top = top + total(sum_of(0 * lax.stop_gradient(units)), ring)  # a maximum over devices may lose a NaN
        if self.sharpness is None and not graded:
            return top, None

        def weights(found: jax.Array, is_new: jax.Array) -> jax.Array:
            size = magnitude(found)
            if self.sharpness is None:
                # Both devices of a pair must see it at the maximum, which each one has rounded.
                weight = (size >= top * (1 - 64 * float(np.finfo(size.dtype).eps))).astype(size.dtype)
            else:
                weight = jnp.exp(self.sharpness * (size - top))
            return jnp.where(is_new, weight, jnp.zeros_like(weight))

        def add(state: tuple[jax.Array, jax.Array], start: jax.Array) -> tuple[Any, None]:
            sums, weight = state
            found, is_new = cosines(units, others, start)
            weighted = weights(found, is_new)
            if graded:
                towards = weighted * lax.stop_gradient(jnp.sign(found))
                of_block = lax.dot_general(towards, others, (((1,), (axis,)), ((), ())), precision=precision)
                begin = jnp.minimum(start, n - size)
                of_block = of_block if axis == 0 else of_block.T
                if size == n:
                    return (of_block, sum_of(weighted)), None
                own = lax.dynamic_slice_in_dim(sums, begin, size, axis)
                sums = lax.dynamic_update_slice_in_dim(sums, own + of_block, begin, axis)
            return (sums, weight + sum_of(weighted)), None

        zero = as_varying(jnp.zeros((), x.dtype), units, others)
        state = jnp.broadcast_to(zero, units.shape), zero
        (sums, weight), _ = add(state, starts[0]) if size == n else lax.scan(add, state, starts)
        weight = total(weight, ring)
        if self.sharpness is not None:
            # Vectors of zeros that fill what does not divide are in pairs with the cosine 0.
            weight = weight - (met * (met - 1) - count * (count - 1)) * jnp.exp(-self.sharpness * top)
        value = top if self.sharpness is None else top + jnp.log(weight) / self.sharpness
        return value, back(2 * sums / weight)[0] if graded else None


def _as_python(value: Any, *, name: str, wanted: str) -> float | int:
    """Returns a number that is static, as Python has it, so that it can be hashed and written to a config."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number {wanted}, got {describe(value)}")
    return value.item() if isinstance(value, np.generic) else value


def checked_sharpness(sharpness: Any) -> float | None:
    if sharpness is None:
        return None
    sharpness = _as_python(sharpness, name="sharpness", wanted="> 0 or None")
    if not SMALLEST <= sharpness <= GREATEST:
        raise ValueError(f"`sharpness` must be a finite number > 0 or None, in float32, got {brief(sharpness)}")
    return sharpness


def checked_power(p: Any) -> float:
    p = _as_python(p, name="p", wanted=">= 1")
    if not 1 <= p <= GREATEST:
        raise ValueError(f"`p` must be a finite number >= 1, in float32, got {brief(p)}")
    return p


def all_cosines(x: jax.Array, axis: int) -> jax.Array:
    """Returns the n × n cosines between the vectors along `axis`, in float32 on every platform."""
    units = unit_vectors(x, axis)
    components = ((1 - axis,), (1 - axis,))
    return lax.dot_general(units, units, (components, ((), ())), precision=lax.Precision.HIGHEST)


def largest_cosine(
    x: jax.Array, axis: int, size: int = 1024, *, others: jax.Array | None = None, first: Any = 0
) -> jax.Array:
    """Returns the largest |cos(x_i, x_j)| with i ≠ j, and 0 for one vector, from `size` rows of cosines at a time.

    With `others`, the vectors x_i, from the place `first` on, meet these as x_j.
    """
    n = x.shape[axis]
    units = unit_vectors(x, axis)
    others = units if others is None else others
    components = ((1 - axis,), (1 - axis,))

    @jax.checkpoint
    def of_block(start: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(units, start, min(size, n), axis)
        cosines = lax.dot_general(block, others, (components, ((), ())), precision=lax.Precision.HIGHEST)
        itself = first + start + jnp.arange(len(cosines))[:, None] == jnp.arange(others.shape[axis])[None, :]
        return largest(lax.select(itself, jnp.zeros_like(cosines), magnitude(cosines)))

    # The last block begins earlier, so that it ends with the last vector.
    starts = np.minimum(np.arange(0, n, size), max(n - size, 0))
    return largest(lax.map(of_block, starts)) if others.shape[axis] > 1 else jnp.zeros((), units.dtype)


@dataclasses.dataclass(frozen=True)
class LargestCosine:
    """The function of matrices, which may be divided, that is their largest |cosine|."""

    def __call__(self, matrices: Matrices) -> jax.Array:
        found = dealt(*matrices, "vectors")

        def one(x: jax.Array, axis: int) -> jax.Array:
            if not found.ring:
                return largest_cosine(x, axis)
            others = lax.all_gather(unit_vectors(x, axis), found.ring, axis=axis, tiled=True)
            return largest_cosine(x, axis, others=others, first=lax.axis_index(found.ring) * x.shape[axis])

        here = largest(over_batch(one, found.array, matrices.layout))
        axes = tuple(sorted(varying(here)))
        return largest(lax.all_gather(here, axes, to="invarying")) if axes else here


def check_sample(sample: Any) -> None:
    if sample is not None and (not isinstance(sample, int) or isinstance(sample, bool)):
        raise TypeError(f"`sample` must be an int or None, got {describe(sample)}")
    if sample is not None and sample < 2:
        raise ValueError(f"`sample` must be at least 2, to have a pair, got {sample}")


def random_vectors(matrices: Matrices, sample: int, key: jax.Array) -> Matrices:
    """Returns `sample` distinct vectors of each matrix, or all of them where there are no more."""
    x, layout = matrices
    count, n, _ = layout.sizes
    if n <= sample:
        return matrices
    keys = jax.random.split(key, count)
    batch, vectors, components = layout.kinds
    if batch.over:
        keys = keys[own_places(batch)]

    def of_one(matrix: jax.Array, key: jax.Array) -> jax.Array:
        chosen = jax.random.choice(key, n, (sample,), replace=False)
        if not vectors.over:
            return jnp.take(matrix, chosen, axis=layout.axis)
        # Those of other devices are zeros here, and come by the sum over devices.
        place, is_own = own_place_of(vectors, chosen)
        taken = jnp.take(matrix, place, axis=layout.axis)
        is_own = jnp.expand_dims(is_own, 1 - layout.axis)
        return total(jnp.where(is_own, taken, jnp.zeros_like(taken)), vectors.over)

    array = jax.vmap(of_one, in_axes=(layout.batch, 0), out_axes=layout.batch)(x, keys)
    layout = layout._replace(
        kinds=(batch, Kind((sample,), ((),)), components),
        spare=layout.spare + vectors.over,
        sizes=(count, sample, layout.sizes[2]),
    )
    return Matrices(array, layout)


def over_batch(function: Callable[..., Any], x: jax.Array, layout: Layout) -> Any:
    """Returns the results of a function of one matrix and of the axis of its vectors, for a batch of matrices.

    Small matrices are faster together. Large ones are faster one by one, and take less memory.
    """
    batch = layout.batch
    one = functools.partial(function, axis=layout.axis)
    if x.shape[batch] == 1:
        return jax.tree.map(lambda found: found[None], one(jnp.squeeze(x, batch)))
    if x.shape[layout.vectors] > ONE_BY_ONE:
        return lax.map(one, jnp.moveaxis(x, batch, 0))
    return jax.vmap(one, in_axes=batch)(x)
