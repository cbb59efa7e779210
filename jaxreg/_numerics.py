"""Numbers that stay right at their awkward points: dtypes, |x|, sums, strengths and norms.

Every penalty and every prox adds up and compares weights by `sum_of` and `largest`.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import as_real, checked_number, describe, is_float_array
from jaxreg._shards import Names, known_split, placement, split_of, total, varying


class Over(NamedTuple):
    """Axes of an array, and the mesh axes that divide these."""

    axes: tuple[int, ...]
    names: Names = ()


Axes = int | tuple[int, ...] | Over


def accumulation_dtype(*dtypes: Any) -> np.dtype:
    """Returns the dtype in which sums over arrays of `dtypes` are taken: at least float32."""
    wide = any(np.dtype(dtype) == np.float64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def as_wide(x: ArrayLike, *, name: str = "x") -> jax.Array:
    """Returns `x` as an array of its accumulation dtype. Its gradient comes back in the dtype of `x`."""
    x = as_floats(x, name=name)
    return x.astype(accumulation_dtype(x.dtype))


def as_floats(x: ArrayLike, *, name: str = "x") -> jax.Array:
    """Returns `x` as an array of real floating-point numbers, in its own dtype. Errors call it `name`."""
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        is_tree = x is not None and not jax.tree_util.all_leaves([x])
        hint = "; for a tree of arrays use `jaxreg.Rules`" if is_tree else ""
        if isinstance(x, jax.ShapeDtypeStruct):
            hint = " without values; for shapes use `jax.eval_shape`, or `explain` of rules"
        raise TypeError(f"`{name}` must be a real floating-point array, got {describe(x)}{hint}") from error
    if not is_float_array(x):
        raise TypeError(f"`{name}` must be a real floating-point array, got {describe(x)}")
    return x


def in_dtype_of(x: ArrayLike, result: jax.Array) -> jax.Array:
    return result.astype(jnp.asarray(x).dtype)


def everything(x: jax.Array) -> Over:
    """Returns all axes of an array, for a sum or a maximum over the whole."""
    return Over(tuple(range(x.ndim)), split_of(x).names)


def sum_of(x: jax.Array, axes: Axes | None = None) -> jax.Array:
    """Returns the sum over `axes`, which are kept with size 1, or the sum of the whole array as a scalar.

    For a shard, of which it is known how it is divided, this is the sum over all shards. For any other shard it is the
    sum of that shard.
    """
    if axes is None:
        split = known_split(x)
        return jnp.sum(x) if split is None else total(jnp.sum(x), split.names)
    over = _over(axes)
    return total(jnp.sum(x, axis=over.axes, keepdims=True), over.names)


def _over(axes: Axes) -> Over:
    return axes if isinstance(axes, Over) else Over((axes,) if isinstance(axes, int) else axes)


def largest(x: jax.Array, axes: Axes | None = None, *, least: float = 0.0) -> jax.Array:
    """Returns the largest value over `axes`, which are kept with size 1, or of the whole array as a scalar.

    It is `least` where there is no larger one.
    """
    if axes is None:
        return largest(x, Over(tuple(range(x.ndim))), least=least).reshape(())
    over = _over(axes)
    if not over.names and placement(x) is None:
        return jnp.max(x, axis=over.axes, keepdims=True, initial=least)
    # A maximum over devices has no derivative and may lose a NaN. The mean of the largest values has one and shows it.
    found = peak(jax.lax.stop_gradient(x), over, least)
    is_chosen = x == found
    count = sum_of(is_chosen.astype(x.dtype), over)
    bad = sum_of(jnp.where(jnp.isnan(x), x, jnp.zeros_like(x)), over)
    chosen = sum_of(jnp.where(is_chosen, x, jnp.zeros_like(x)), over)
    return jnp.where(count > 0, chosen / (jnp.maximum(count, 1) + bad), found + bad)


def peak(x: jax.Array, over: Over, least: float) -> jax.Array:
    """Returns the largest value over axes, without a derivative. It may lose a NaN."""
    found = jnp.max(x, axis=over.axes, keepdims=True, initial=least)
    names = tuple(name for name in over.names if name in varying(found))
    return jax.lax.pmax(found, names) if names else found


def magnitude(x: jax.Array) -> jax.Array:
    """Returns |x| with the subgradient sign(x), so 0 at 0. That of `jnp.abs` is 1."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def nothing(x: jax.Array) -> jax.Array:
    """Returns zeros with the derivative 0, but a NaN where `x` is not finite, in both."""
    return (0 * x) * x


def root(x: jax.Array) -> jax.Array:
    """Returns √x for x >= 0, with the gradient 0 at 0."""
    zero = x == 0
    return jnp.where(zero, jnp.zeros_like(x), jnp.sqrt(jnp.where(zero, jnp.ones_like(x), x)))


def scaled(strength: Any, value: jax.Array, *, name: str) -> jax.Array:
    """Returns `strength * value` in the dtype of `value`, exactly 0 where `strength` is 0.

    An infinite value counts for nothing under a strength of 0. The derivative with respect to a strength of 0 is
    `value` where that is finite, so that a strength can be learned from there.
    """
    if isinstance(strength, float) and strength >= np.finfo(value.dtype).tiny:
        return float(strength) * value  # nothing to ignore, and less to compile
    strength = _single_strength(strength, name=name).astype(value.dtype)
    ignored = (strength == 0) & ~jnp.isfinite(value)
    return strength * jnp.where(ignored, jnp.zeros_like(value), value)


def times_strength(step: Any, strength: Any, *, name: str) -> jax.Array:
    """Returns `step * strength`, which is the step of a prox of the penalty without its strength."""
    step = as_real(checked_number(step, name="step"), name="step")
    strength = _single_strength(strength, name=name)
    dtype = accumulation_dtype(step.dtype, strength.dtype)
    return step.astype(dtype) * strength.astype(dtype)


def _single_strength(strength: Any, *, name: str) -> jax.Array:
    strength = as_real(strength, name=name)
    if strength.ndim:
        raise ValueError(
            f"`{name}` must be a scalar where the regularizer is called, got shape "
            f"{strength.shape}; map over stacked strengths with `jax.vmap`"
        )
    return strength


def checked_penalty(value: Any, *, of: object) -> jax.Array:
    """Returns what a penalty has returned, which must be a real scalar, in at least float32."""
    if not is_float_array(value) and not isinstance(value, float):
        raise TypeError(f"{of} must return a real floating-point scalar, got {describe(value)}")
    value = jnp.asarray(value)
    if value.shape:
        raise TypeError(f"{of} must return a scalar, got {describe(value)}")
    return value.astype(accumulation_dtype(value.dtype))


def add_up(values: Iterable[jax.Array]) -> jax.Array:
    """Returns the sum of scalars in the widest of their dtypes, or 0 if there are none."""
    values = list(values)
    dtype = accumulation_dtype(*(value.dtype for value in values))
    result = jnp.zeros((), dtype)
    for value in values:
        result = result + value.astype(dtype)
    return result


def near_one(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` with magnitudes of at most 1 along `axes`, the factors taken out of it, and their reciprocals.

    Both are constants from tiny to 1 / tiny, since hardware may take a smaller number for 0.
    """
    tiny = np.finfo(x.dtype).tiny
    factor = jnp.minimum(peak(jnp.abs(jax.lax.stop_gradient(x)), _over(axes), tiny), 1 / tiny)
    reciprocal = 1 / factor
    return x * reciprocal, factor, reciprocal


def near_one_exactly(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Returns `x` with magnitudes below 2 along `axes`, and the powers of two taken out of it. Nothing is rounded."""
    _, factor, _ = near_one(x, axes)
    factor = jnp.ldexp(jnp.ones_like(factor), jnp.frexp(factor)[1] - 1)
    return x * (1 / factor), factor


def for_lapack(x: jax.Array) -> jax.Array:
    """Returns matrices, with NaN in place of one that is not finite: LAPACK may never return for an infinity."""
    finite = jnp.all(jnp.isfinite(x), axis=(-2, -1), keepdims=True)
    return jnp.where(finite, x, jnp.full_like(x, jnp.nan))


class _Scales(NamedTuple):
    """Powers of two that bring small and large numbers near 1, and the bounds between which a norm needs neither."""

    up: float
    down: float
    least: float
    most: float


def _scales(dtype: Any) -> _Scales:
    exponent = int(np.finfo(dtype).maxexp)
    far, bound = 2.0 ** round(0.7 * exponent), 2.0 ** round(0.3125 * exponent)
    return _Scales(far, 1 / far, 1 / bound, bound)


def scale_near_one(x: jax.Array, axes: Axes, by_steps: bool = False) -> jax.Array:
    """Returns a constant power of two, such that no sum of squares of x·scale over `axes` overflows or vanishes.

    It is that of the largest magnitude. With `by_steps` it is found as the least scale of a number, which is the same.
    """
    scales, size = _scales(x.dtype), jnp.abs(jax.lax.stop_gradient(x))

    def scale(size: jax.Array) -> jax.Array:
        or_down = jnp.where(size < scales.most, jnp.ones_like(size), scales.down)
        return jnp.where(size < scales.least, scales.up, or_down)

    return -largest(-scale(size), axes, least=-scales.up) if by_steps else scale(largest(size, axes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def squares_near_one(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Returns Σ(x·scale)² over `axes`, which are kept with size 1, and the scale, as `scale_near_one` has it.

    The sums at all three scales are taken, which some compilers do in one pass. The gradient is 2·scale²·x.
    """
    scales = _scales(x.dtype)
    plain, up, down = (sum_of(jnp.square(x * scale), axes) for scale in (1.0, scales.up, scales.down))
    is_small, is_large = plain < scales.least**2, ~(plain < scales.most**2)  # a NaN is large, so it shows
    squares = jnp.where(is_small, up, jnp.where(is_large, down, plain))
    return squares, jnp.where(is_small, scales.up, jnp.where(is_large, scales.down, jnp.ones_like(plain)))


@squares_near_one.defjvp
def _squares_near_one_jvp(
    axes: Axes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (x,), (dx,) = primals, tangents
    squares, scale = squares_near_one(x, axes)
    change = 2 * sum_of((x * scale) * (dx * scale), axes)
    return (squares, scale), (change, jnp.zeros_like(scale))


def norms(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Returns ‖x‖ over `axes`, which are kept with size 1, as two factors: a constant near its magnitude, and the rest.

    No square overflows then, and no quotient by the norm does. The gradient at a zero vector is 0. On CPUs, where each
    sum is a pass over `x`, the constant is 1 if that does for all vectors, which takes one pass in place of two.
    """

    def near(x: jax.Array, _: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        rows, factor, _ = near_one(x, axes)
        return factor, root(sum_of(jnp.square(rows), axes))

    # On a mesh all devices would have to take the same branch, because both hold collectives.
    if jax.default_backend() != "cpu" or placement(x) is not None or (isinstance(axes, Over) and axes.names):
        return near(x)
    squares, is_usual = plain_squares(x, axes)

    def plain(_: jax.Array, squares: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(squares), jnp.sqrt(squares)

    return jax.lax.cond(jnp.all(is_usual), plain, near, x, squares)


def plain_squares(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Returns Σx² over `axes`, which are kept with size 1, and where it is far from overflow and from vanishing."""
    # The derivative of a square, which is 2x, may overflow where that of a product does not.
    squares, most = sum_of(x * x, axes), float(np.finfo(x.dtype).max) ** 0.6
    return squares, (squares > 1 / most) & (squares < most)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(x: jax.Array, axes: Axes) -> jax.Array:
    """Returns ‖x‖ over `axes`, which are kept with size 1. Its gradient is right also where the norm overflows."""
    factor, rest = norms(x, axes)
    return factor * rest


@norm.defjvp
def _norm_jvp(axes: Axes, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    scaled_x, factor, _ = near_one(x, axes)
    rest = root(sum_of(jnp.square(scaled_x), axes))
    direction = scaled_x / jnp.where(rest == 0, jnp.ones_like(rest), rest)
    return factor * rest, sum_of(direction * dx, axes)


def ulps(count: float, value: jax.Array, dtype: Any) -> jax.Array:
    """Returns `count` units in the last place of a value >= 0, as numbers of `dtype` have them, and 0 for 0."""
    value = jax.lax.stop_gradient(value)
    unit = jax.lax.nextafter(value, jnp.full_like(value, np.inf)) - value
    coarser = spacing_ratio(dtype, value.dtype)
    return jnp.where(value > 0, count * coarser * unit, jnp.zeros_like(value))


def spacing_ratio(dtype: Any, other: Any) -> float:
    """Returns how many times as far apart the numbers of a dtype are as those of another one."""
    # That of JAX knows bfloat16, and has no types.
    first, second = (float(jnp.finfo(kind).eps) for kind in (dtype, other))  # type: ignore[no-untyped-call]
    return first / second


def zero_where(condition: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `x` with 0 where a condition holds. A NaN or an infinity there becomes NaN, so that it shows."""
    return jnp.where(condition & (x != 0), x * 0 + 0, x)
