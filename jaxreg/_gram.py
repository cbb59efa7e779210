"""Sums over the Gram matrix of vectors, without the matrix where it is large.

The vectors lie along one axis of a matrix, and their components along the other: they are the rows or the columns, and
are never transposed. With the unit vectors u_i, the cosines c_ij = ⟨u_i, u_j⟩ and an even function φ, such as |·|, the
sum Σ_{i≠j} φ(c_ij) has the gradient 2 Σ_j φ'(c_ij) u_j with respect to u_i. So cosines are made, φ' of them is
multiplied by the vectors, and they are dropped. Both are computed in one pass.

Up to some number of vectors the pass is dense. It computes the products ⟨x_i, x_j⟩ of the vectors as they are, divides
these by the lengths, and never makes a copy of unit length. It takes 4n²d FLOPs. Above, it takes the symmetry: cosines
of two blocks of vectors serve both. With an odd number of blocks, here 5, each one meets the next half of the others:

            0   1   2   3   4          · the block itself, whose cosines are symmetric: two products
        0   ·   ■   ■                  ■ one panel, as wide as half of the vectors: three products,
        1       ·   ■   ■                the cosines C, φ'(C) times the panel, and its transpose times the block
        2           ·   ■   ■
        3   ■           ·   ■          The rows end where they began, so the first two blocks are repeated at the end.
        4   ■   ■           ·

These are P panels, and (3 + 1/P)n²d FLOPs where autodiff through the matrix takes 6n²d. Where memory is dear, a panel
is one block wide, and there are P²/2 of them. `_plans.py` chooses by the platform.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxreg._numerics import accumulation_dtype, magnitude, nothing, scale_near_one, squares_near_one, sum_of
from jaxreg._plans import UNROLLED, Plan, Precision, by_platform
from jaxreg._shards import Names, as_varying, size_of, varying

Pass = tuple[jax.Array, Any]  # the value, and the gradient, or None where it is not asked for

EPSILON = 1e-7  # Keras's least norm of a vector


Meeting = Literal["itself", "both", "block"]


class Element(NamedTuple):
    """An even function φ of a cosine with φ(0) = 0, and its derivative.

    Where φ(tc) = t^degree φ(c), the degree saves a pass over the cosines: Σφ(c) is then Σφ'(c)c / degree.
    """

    value: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]
    degree: float | None = None


def _sign(x: jax.Array) -> jax.Array:
    return lax.stop_gradient(jnp.sign(x))


ABSOLUTE = Element(jnp.abs, _sign, 1)
SQUARE = Element(jnp.square, lambda c: 2 * c, 2)


@functools.cache
def power(p: float) -> Element:
    """Returns |c|^p with p >= 1, the same object each time, so that passes with it are compiled once."""
    if p == 1:
        return ABSOLUTE
    if p % 2 == 0:
        return Element(lambda c: c ** int(p), lambda c: p * c ** int(p - 1), p)

    def slope(c: jax.Array) -> jax.Array:
        # Below p = 2 its derivative at 0 is infinite, which a product with 0 would make NaN.
        size = jnp.where(c == 0, jnp.ones_like(c), magnitude(c))
        return p * _sign(c) * size ** (p - 1)

    return Element(lambda c: magnitude(c) ** p, slope, p)


@functools.partial(jax.jit, static_argnames=("axis", "element", "precision", "plan"))
def mean_over_pairs(
    x: jax.Array, axis: int, element: Element, *, precision: Precision = None, plan: Plan | None = None
) -> jax.Array:
    """Returns the mean of φ(cos(x_i, x_j)) over the pairs i ≠ j of vectors along `axis`, and 0 for fewer than two.

    It is under `jax.jit` already, so that kernels of one shape are traced once.
    """
    if x.shape[axis] < 2:
        return sum_of(nothing(x.astype(accumulation_dtype(x.dtype))))
    return _value(x, of_cosines, axis, element, precision, plan)


@functools.partial(jax.jit, static_argnames=("axis", "precision", "plan"))
def frame_excess(x: jax.Array, axis: int, *, precision: Precision = None, plan: Plan | None = None) -> jax.Array:
    """Returns the mean of cos²(x_i, x_j) over the pairs i ≠ j of vectors along `axis`, minus its least possible value.

    For n ≤ d vectors the least is 0. For n > d, with C = UᵀU, the difference is ‖C − (n/d)I‖²/(n(n−1)): a sum over the
    pairs of components, which are fewer. No large sums are subtracted.
    """
    n, d = x.shape[axis], x.shape[1 - axis]
    if not are_more_than_components(n, d):
        return mean_over_pairs(x, axis, SQUARE, precision=precision, plan=plan)
    units = unit_vectors(x.astype(accumulation_dtype(x.dtype)), axis)
    apart = gram_sum(units, 1 - axis, SQUARE, precision, plan)
    return (apart + sum_of(jnp.square(sum_of(jnp.square(units), axis) - n / d))) / float(n * (n - 1))


def are_more_than_components(n: int, d: int) -> bool:
    """Returns whether n vectors are so many that they cannot be orthogonal, and their frame has an excess."""
    return n > d > 0 and n > 1


def pair_sum_reference(x: jax.Array, axis: int = 0, element: Element = ABSOLUTE) -> jax.Array:
    """Returns Σ_{i≠j} φ(cos(x_i, x_j)), written as the formula reads."""
    units = unit_vectors(x if axis == 0 else x.T, 0)
    gram = jnp.matmul(units, units.T, precision=lax.Precision.HIGHEST)
    value = magnitude if element is ABSOLUTE else element.value
    return sum_of(jnp.where(jnp.eye(len(units), dtype=bool), jnp.zeros_like(gram), value(gram)))


class Lengths(NamedTuple):
    """Vectors at a magnitude near 1, and what normalises them; arrays keep the axis of the components, with size 1."""

    scale: jax.Array  # a power of two, so that a vector times it is exact
    inverse: jax.Array  # 1 / max(length, epsilon) of the vector times the scale
    is_long: jax.Array  # whether the length is above epsilon


def lengths_from(squares: jax.Array, scale: jax.Array) -> Lengths:
    """Returns what normalises vectors: x times `scale` times `inverse` is x / max(‖x‖, 1e-7).

    A vector below that length is divided by a constant, so that the gradient of a zero vector is finite.
    """
    least = EPSILON * scale
    is_long = jnp.sqrt(squares) > least
    inverse = 1 / lax.select(is_long, jnp.sqrt(lax.select(is_long, squares, jnp.ones_like(squares))), least)
    return Lengths(scale, inverse, is_long)


def lengths(x: jax.Array, axis: int) -> Lengths:
    """Returns what normalises the vectors along `axis`."""
    return lengths_from(*squares_near_one(x.astype(accumulation_dtype(x.dtype)), 1 - axis))


def unit_vectors(x: jax.Array, axis: int) -> jax.Array:
    """Returns the vectors along `axis` over max(norm, 1e-7), finite for every finite `x` of at least float32."""
    found = lengths(x, axis)
    return x * found.scale * found.inverse


def gram_sum(x: jax.Array, axis: int, element: Element, precision: Precision, plan: Plan | None) -> jax.Array:
    """Returns Σ_{i≠j} φ(⟨x_i, x_j⟩) over vectors along `axis`, which are not normalised."""
    return _value(x, pass_over_products, axis, element, precision, plan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4, 5))
def _value(
    x: jax.Array, one_pass: Callable[..., Pass], axis: int, element: Element, precision: Precision, plan: Plan | None
) -> jax.Array:
    """Returns the value of a pass. Where no gradient is asked for, only the value is computed."""
    return by_platform(functools.partial(one_pass, axis, element, False), x, axis, precision, plan)[0]


@_value.defjvp
def _value_jvp(
    one_pass: Callable[..., Pass],
    axis: int,
    element: Element,
    precision: Precision,
    plan: Plan | None,
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    value, gradient = by_platform(functools.partial(one_pass, axis, element, True), x, axis, precision, plan)
    return value, sum_of(gradient * change.astype(gradient.dtype))


def pass_over_products(
    axis: int, element: Element, graded: bool, plan: Plan, x: jax.Array, *, ring: Names = ()
) -> Pass:
    """Returns Σ_{i≠j} φ(⟨x_i, x_j⟩) of vectors that may be divided over the mesh axes `ring`, and its gradient."""
    sums, value = _Pass(axis, element, plan, graded).over_all(Vectors(x, None, x), ring)
    if sums is None:
        return value, None
    return (sum_of(x * sums) / element.degree if element.degree else value), 2 * sums


def of_cosines(axis: int, element: Element, graded: bool, plan: Plan, x: jax.Array) -> Pass:
    """Returns the mean over pairs of the vectors of one matrix, and its gradient where it is `graded`."""
    one_pass = functools.partial(pass_over_cosines, axis, element, graded, plan)
    return _alone(one_pass, x) if plan.alone and not varying(x) else one_pass(x)


def _alone(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """Returns `function(x)` as a branch of a conditional that is always taken, though XLA does not see that.

    XLA on CPUs computes what it can as soon as it can. With many kernels in a program, the temporaries of all passes
    would be held at once, and fresh memory costs more time than a pass saves. A branch is computed as a whole.
    """
    first = x[(0,) * x.ndim]
    never = (first < 0) & (first > 0)
    result = jax.eval_shape(function, x)
    return lax.cond(never, lambda x: jax.tree.map(lambda r: jnp.zeros(r.shape, r.dtype), result), function, x)


def pass_over_cosines(
    axis: int, element: Element, graded: bool, plan: Plan, x: jax.Array, *, ring: Names = (), count: int | None = None
) -> Pass:
    """Returns the mean over pairs, of which `count` vectors in all are divided over the mesh axes `ring`.

    There it is the part of the mean that the device has, and the gradient with respect to its own vectors.
    """
    wide = accumulation_dtype(x.dtype)
    n = x.shape[axis]
    count = n if count is None else count
    share = 1 / (count * (count - 1))
    if not plan.raw:
        x = x.astype(wide)
    one_pass = _Pass(axis, element, plan, graded)
    along: jax.Array | None = None
    if n <= plan.size and not ring:
        near_one, found, sums, along, value = one_pass.dense(x)
    else:
        found = lengths(x, axis)
        near_one = x * found.scale.astype(x.dtype)
        units = near_one.astype(wide) * found.inverse
        # The signs of bfloat16 vectors come from the vectors themselves, whose products are exact.
        raw = Vectors(near_one, found.inverse.reshape(n), units.astype(x.dtype))
        sums, value = one_pass.over_all(Vectors(units, None, units) if x.dtype == wide else raw, ring)
        along = None if sums is None else sum_of(units * sums, 1 - axis)
    if along is None:
        return value * share, None
    # Through the normalisation it is (g − u⟨u, g⟩)/‖x‖, where a short vector is not normalised.
    kept = lax.select(found.is_long, along, jnp.zeros_like(along))
    gradient = (sums - near_one.astype(wide) * (found.inverse * kept)) * (2 * share * found.inverse * found.scale)
    return sum_of(along * (share / element.degree)) if element.degree else value * share, gradient


class Vectors(NamedTuple):
    """Vectors, of which ⟨u_i, u_j⟩ is ⟨rows_i, rows_j⟩ times the factors of both, and which are added up as `units`."""

    rows: jax.Array
    factors: jax.Array | None
    units: jax.Array


@dataclasses.dataclass(frozen=True)
class _Pass:
    """A pass over the pairs of vectors along `axis`: the sums Σ_j φ'(g_ij) u_j where it is `graded`, and the value."""

    axis: int
    element: Element
    plan: Plan
    graded: bool

    def dense(self, x: jax.Array) -> tuple[jax.Array, Lengths, Any, jax.Array | None, Any]:
        """Returns vectors near 1, their lengths, the sums, the products Σ_j φ'(c_ij) c_ij, and the value.

        Vectors of unit length are made only if slopes would lose digits to their factors. Squared lengths are on the
        diagonal of the Gram matrix.
        """
        wide = x.astype(accumulation_dtype(x.dtype))
        if self.plan.scaling == "sums":
            found = lengths(x, self.axis)
            near_one = x * found.scale.astype(x.dtype)
            gram = self._gram(near_one, near_one)
        else:
            scale = scale_near_one(wide, 1 - self.axis, by_steps=self.plan.scaling == "steps")
            near_one = x * scale.astype(x.dtype)
            gram = self._gram(near_one, near_one)
            found = lengths_from(jnp.diagonal(gram).reshape(scale.shape), scale)
        factors = found.inverse.reshape(-1)
        cosines = _without_itself(gram * factors[:, None] * factors[None, :])
        if not self.graded:
            return near_one, found, None, None, sum_of(self.element.value(cosines))
        slopes, values = self.element.slope(cosines), self.element.value(cosines)
        # With a degree φ'(c)c is a multiple of φ(c). Kept apart, so that XLA does not read the n × n products again for
        # the value.
        products = self.element.degree * values if self.element.degree else slopes * cosines
        along = _kept_apart(sum_of(products, 1).reshape(found.scale.shape))
        value = None if self.element.degree else sum_of(values)
        if self.plan.exact_slopes:
            sums = self._weighted(slopes, (near_one.astype(gram.dtype) * found.inverse).astype(x.dtype))
        else:
            sums = self._weighted(slopes * factors[None, :], near_one)
        return near_one, found, sums, along, value

    def over_all(self, vectors: Vectors, ring: Names) -> tuple[jax.Array | None, jax.Array]:
        """Returns what `over_blocks` returns, for vectors that are divided over the mesh axes `ring`.

        The vectors of all devices go around: each device meets those of the next half of the others, as the blocks of a
        matrix do. What a meeting adds to the vectors that visit goes on with them, and home at the end. With an even
        number of devices, two that face each other meet twice, and each keeps what it adds to its own vectors.

        A device sends its visitors on before it works with them, so that both happen at once.
        """
        sums, value = self.over_blocks(vectors)
        devices = size_of(ring)
        both = (devices - 1) // 2
        if devices == 1:
            return sums, value

        def passed(parts: Any, hops: int = 1) -> Any:
            to = [(i, (i - hops) % devices) for i in range(devices)]
            return jax.tree.map(lambda part: lax.ppermute(part, ring, to), parts)

        def hop(state: Any, _: Any) -> tuple[Any, None]:
            sums, value, visitor, added = state
            following, arriving = passed(visitor), passed(added)
            sums, more, extra = self._visit(vectors, visitor, "both", sums)
            added = arriving + more if self.graded else None
            return (sums, value + extra, following, added), None

        visitor = passed(vectors if vectors.factors is not None else vectors.units)
        if both:
            # The first visitors bring nothing yet.
            following = passed(visitor)
            sums, added, extra = self._visit(vectors, visitor, "both", sums)
            state = sums, value + extra, following, added
            (sums, value, visitor, added), _ = lax.scan(hop, state, length=both - 1)
            if self.graded:
                sums = sums + passed(added, -both)
        if devices % 2 == 0:
            sums, _, extra = self._visit(vectors, visitor, "block", sums)
            value = value + extra
        return sums, value

    def _visit(self, vectors: Vectors, visitor: Any, kind: Meeting, sums: Any) -> tuple[Any, Any, jax.Array]:
        """Returns `sums` plus what the pairs of all vectors with those of a visitor add, and what they add to these."""
        if not isinstance(visitor, Vectors):
            visitor = Vectors(visitor, None, visitor)
        meet = jax.checkpoint(self._meet, static_argnums=2)
        n = vectors.rows.shape[self.axis]
        size = self.plan.part(n)
        if size == n:
            of_own, of_visitor, extra = meet(vectors, visitor, kind)
            return sums + of_own if self.graded else None, of_visitor, extra
        rest = -n % size
        vectors = jax.tree.map(lambda x: self._longer(x, rest), vectors)

        def block(state: Any, start: jax.Array) -> tuple[Any, None]:
            sums, of_visitor, value = state
            of_block, more, extra = meet(self._cut(vectors, start, size), visitor, kind)
            if of_block is not None:
                sums = self._add(sums, start, of_block)
            return (sums, None if more is None else of_visitor + more, value + extra), None

        zeros = as_varying(jnp.zeros((), accumulation_dtype(visitor.units.dtype)), vectors.units, visitor.units)
        state: Any = (
            self._longer(sums, rest) if self.graded else None,
            jnp.broadcast_to(zeros, visitor.units.shape) if self.graded and kind == "both" else None,
            zeros,
        )
        starts: Any = np.arange(0, n, size).astype(np.uint32)
        (sums, of_visitor, extra), _ = lax.scan(block, state, starts)
        return self._part(sums, 0, n) if self.graded else None, of_visitor, extra

    def over_blocks(self, vectors: Vectors) -> tuple[jax.Array | None, jax.Array]:
        """Returns the sums, and the value unless it follows from them, block by block.

        Their derivative computes the Gram matrix again instead of keeping it.
        """
        n = vectors.rows.shape[self.axis]
        count, size, rounds = self.plan.rounds(n)
        products = jax.checkpoint(self._meet, static_argnums=2)
        if count <= UNROLLED:
            blocks = [self._cut(vectors, i * size, min(size, n - i * size)) for i in range(count)]
            of_blocks, _, extras = map(list, zip(*(products(block, block, "itself") for block in blocks), strict=True))
            for i, j in itertools.combinations(range(count), 2):
                of_i, of_j, extra = products(blocks[i], blocks[j], "both")
                if self.graded:
                    of_blocks[i], of_blocks[j] = of_blocks[i] + of_i, of_blocks[j] + of_j
                extras.append(extra)
            return jnp.concatenate(of_blocks, self.axis) if self.graded else None, functools.reduce(jnp.add, extras)

        # Vectors of zeros fill the last block and add nothing. Panels that run over the end meet the first blocks.
        again = (max(width for *_, width, _ in rounds) - 1) * size
        vectors = jax.tree.map(lambda x: self._longer(x, count * size - n, again), vectors)

        def meet(width: int, itself: bool, state: Any, ij: Any) -> tuple[Any, None]:
            (sums, value), (i, j) = state, ij
            panel = self._cut(vectors, j * size, width * size)
            block = self._cut(panel, 0, size) if itself else self._cut(vectors, i * size, size)
            of_block, of_panel, extra = products(block, panel, "itself" if itself else "both")
            if of_block is not None:
                sums = self._add(sums, i * size, of_block)
            if of_panel is not None:
                sums = self._add(sums, (j + int(itself)) * size, of_panel)
            return (sums, value + extra), None

        dtype = accumulation_dtype(vectors.rows.dtype)
        zeros = as_varying(jnp.zeros((), dtype), vectors.units)
        state = jnp.broadcast_to(zeros, vectors.units.shape) if self.graded else None, zeros
        for first, second, width, itself in rounds:
            # Unsigned, because JAX tests each signed index for a count from the end.
            indices = first.astype(np.uint32), second.astype(np.uint32)
            state, _ = lax.scan(functools.partial(meet, width, itself), state, indices)
        sums, value = state
        if sums is not None:
            head, tail = self._part(sums, 0, count * size), self._part(sums, count * size)
            sums = self._part(head + self._longer(tail, count * size - again) if again else head, 0, n)
        return sums, value

    def _meet(self, block: Vectors, panel: Vectors, kind: Meeting) -> tuple[Any, Any, jax.Array]:
        """Returns what the pairs of a block with a panel add to the sums of both, and to the value.

        For "itself" the panel begins with the block. The pairs within it are symmetric, and add to the block alone. For
        "block" all pairs do.
        """
        gram = self._gram(block.rows, panel.rows)
        if block.factors is not None and panel.factors is not None:
            gram = gram * block.factors[:, None] * panel.factors[None, :]
        if kind == "itself":
            gram = _without_itself(gram)
        first = {"itself": len(gram), "both": 0, "block": gram.shape[1]}[kind]  # the first vector that is added to
        extra = as_varying(jnp.zeros((), gram.dtype), gram)
        if not (self.graded and self.element.degree):
            extra = sum_of(self.element.value(gram))
            if first < gram.shape[1]:
                extra = extra + sum_of(self.element.value(gram[:, first:]))
        if not self.graded:
            return None, None, extra
        slopes = self.element.slope(gram)
        of_block = self._weighted(slopes, panel.units)
        rest = slopes[:, first:]
        return of_block, self._weighted(rest, block.units, over=0) if rest.size else None, extra

    # Products, contracted along the axes as they lie.

    def _gram(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns ⟨a_i, b_j⟩ in at least float32."""
        return self._product(a, b, ((1 - self.axis,), (1 - self.axis,)), self.plan.cosines)

    def _weighted(self, weights: jax.Array, vectors: jax.Array, over: int = 1) -> jax.Array:
        """Returns the sums Σ_j w_ij x_j of vectors, or Σ_i w_ij x_i for `over=0`."""
        if over == 0 and self.axis == 0 and self.plan.written_out:
            # XLA on CPUs multiplies by a transposed matrix up to twice as slowly.
            weights, over = _kept_apart(weights.T), 1
        weights = weights.astype(vectors.dtype)
        if self.axis == 0:
            return self._product(weights, vectors, ((over,), (0,)), self.plan.sums)
        return self._product(vectors, weights, ((1,), (over,)), self.plan.sums)

    def _product(self, a: jax.Array, b: jax.Array, contracted: Any, precision: Precision) -> jax.Array:
        dtype = accumulation_dtype(a.dtype)
        return lax.dot_general(a, b, (contracted, ((), ())), precision=precision, preferred_element_type=dtype)

    # Parts along the axis of the vectors. Their factors have no other axis.

    def _cut(self, vectors: Vectors, start: Any, size: int) -> Vectors:
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, self.axis * (x.ndim - 1)), vectors)

    def _add(self, sums: jax.Array, start: Any, change: jax.Array) -> jax.Array:
        change = lax.dynamic_slice_in_dim(sums, start, change.shape[self.axis], self.axis) + change
        if self.plan.written_out:
            # XLA on CPUs would fuse the sum with the update, and may copy all of `sums` for it.
            change = _kept_apart(change)
        return lax.dynamic_update_slice_in_dim(sums, change, start, self.axis)

    def _part(self, x: jax.Array, start: int, stop: int | None = None) -> jax.Array:
        return lax.slice_in_dim(x, start, stop, axis=self.axis * (x.ndim - 1))

    def _longer(self, x: jax.Array, zeros: int, again: int = 0) -> jax.Array:
        """Returns `x` followed by so many zeros, and then by so much of its beginning again."""
        axis = self.axis * (x.ndim - 1)
        padding = jnp.zeros([zeros if i == axis else size for i, size in enumerate(x.shape)], x.dtype)
        parts = [x, *([padding] if zeros else []), *([self._part(x, 0, again)] if again else [])]
        return jnp.concatenate(parts, axis) if len(parts) > 1 else x


def _without_itself(gram: jax.Array) -> jax.Array:
    """Returns products with 0 for those of a vector with itself, where the columns begin with the rows."""
    return lax.select(jnp.eye(gram.shape[0], gram.shape[1], dtype=bool), jnp.zeros_like(gram), gram)


def _kept_apart(x: jax.Array) -> jax.Array:
    return lax.optimization_barrier(x)
