"""Numbers that stay right at their awkward points: dtypes, |x|, strengths, norms."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def describe(x: Any) -> str:
    """What an error says it got: `float32[3,4]` of an array, else the type and the value."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    if x is None:
        return "None"
    shown = isinstance(x, str | bool | int | float | complex | np.generic | type)
    return f"{type(x).__name__} {x!r}" if shown else type(x).__name__


def brief(value: Any) -> str:
    """A value in a repr: its number or name where it has one, else its dtype and shape."""
    if isinstance(value, jax.core.Tracer):
        return f"traced {describe(value)}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{float(value):.6g}" if value.ndim == 0 else describe(value)
    text = repr(value)
    return getattr(value, "__name__", type(value).__name__) if text.startswith("<") else text


def accumulation_dtype(*dtypes: Any) -> np.dtype:
    """The dtype that sums over arrays of `dtypes` are taken in: at least float32."""
    wide = any(np.dtype(dtype) == np.float64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def is_inexact_array(x: Any) -> bool:
    """Whether `x` has a shape and a floating-point dtype, real or complex."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and hasattr(x, "shape") and jnp.issubdtype(dtype, jnp.inexact)


def is_float_array(x: Any) -> bool:
    """Whether `x` has a shape and a real floating-point dtype, a `jax.ShapeDtypeStruct` included."""
    return is_inexact_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def as_wide(x: ArrayLike) -> jax.Array:
    """`x` as an array of its accumulation dtype; its gradient comes back in the dtype of `x`."""
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        is_tree = x is not None and not jax.tree_util.all_leaves([x])
        hint = "; for a tree of arrays use `jaxreg.Rules`" if is_tree else ""
        if isinstance(x, jax.ShapeDtypeStruct):
            hint = " without values; of shapes use `jax.eval_shape`, or `explain` of rules"
        raise TypeError(f"`x` must be a real floating-point array, got {describe(x)}{hint}") from error
    if not is_float_array(x):
        raise TypeError(f"`x` must be a real floating-point array, got {describe(x)}")
    return x.astype(accumulation_dtype(x.dtype))


def magnitude(x: jax.Array) -> jax.Array:
    """|x| with the subgradient sign(x), so 0 at 0, where that of `jnp.abs` is 1."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def as_real(value: Any, *, name: str) -> jax.Array:
    """A number, or an array of numbers, that is neither complex nor a bool."""
    if isinstance(value, jax.Array | np.ndarray | np.generic | int | float) and not isinstance(value, bool):
        value = jnp.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer):
            return value
    raise TypeError(f"`{name}` must be a real number, got {describe(value)}")


def scaled(strength: Any, value: jax.Array, *, name: str) -> jax.Array:
    """`strength * value` in the dtype of `value`, exactly 0 where `strength` is 0.

    A value that overflowed counts for nothing under a strength of 0. The derivative with respect
    to a strength of 0 is `value` where that is finite, so that a strength can be learned from there.
    """
    if isinstance(strength, float) and strength >= np.finfo(value.dtype).tiny:
        return float(strength) * value  # nothing to ignore, and less to compile
    strength = _scalar_strength(strength, name=name).astype(value.dtype)
    ignored = (strength == 0) & ~jnp.isfinite(value)
    return strength * jnp.where(ignored, jnp.zeros_like(value), value)


def _scalar_strength(strength: Any, *, name: str) -> jax.Array:
    strength = as_real(strength, name=name)
    if strength.ndim:
        raise ValueError(
            f"`{name}` must be a scalar where the regularizer is called, got shape "
            f"{strength.shape}; map over stacked strengths with `jax.vmap`"
        )
    return strength


def checked_scalar(value: Any, *, of: object) -> jax.Array:
    """What a penalty has returned, as a scalar of its accumulation dtype."""
    if not is_float_array(value) and not isinstance(value, float):
        raise TypeError(f"{of} must return a real floating-point scalar, got {describe(value)}")
    value = jnp.asarray(value)
    if value.shape:
        raise TypeError(f"{of} must return a scalar, got {describe(value)}")
    return value.astype(accumulation_dtype(value.dtype))


def total(values: Iterable[jax.Array]) -> jax.Array:
    """The sum of scalars in the widest of their dtypes; of none, 0."""
    values = list(values)
    dtype = accumulation_dtype(*(value.dtype for value in values))
    result = jnp.zeros((), dtype)
    for value in values:
        result = result + value.astype(dtype)
    return result


def checked_strength(value: Any, *, name: str, default: float | None = None, above: float | None = None) -> Any:
    """`value` for a constructor: Python and NumPy numbers finite and >= 0, jax arrays as they are.

    An int becomes a float, and None becomes `default` where there is one. With `above`, numbers must exceed that.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, jax.Array):
        return as_real(value, name=name)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating | np.ndarray):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}")
    if np.asarray(value).dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must hold numbers, got {describe(value)}")
    in_range = np.asarray(value) >= 0 if above is None else np.asarray(value) > above
    if not np.all(np.isfinite(value) & in_range):
        raise ValueError(f"`{name}` must be finite and {'>= 0' if above is None else f'> {above:g}'}, got {value!r}")
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind == "f" else value.astype(np.float64)
    return float(value) if isinstance(value, int | np.integer) else value


def number(value: Any, x: jax.Array, *, name: str, above: float | None = None) -> jax.Array:
    """An option of a penalty of `x` as a scalar of its dtype; Python and NumPy numbers are checked."""
    value = as_real(checked_strength(value, name=name, above=above), name=name)
    if value.ndim:
        raise ValueError(f"`{name}` must be a scalar, got {describe(value)}; map over several with `jax.vmap`")
    return value.astype(x.dtype)


def like_x(value: Any, x: jax.Array, *, name: str, or_number: bool = False) -> jax.Array:
    """An array of the shape and dtype of `x`, or where that is allowed a number."""
    if or_number and not np.shape(value):
        return number(value, x, name=name)
    value = as_real(checked_strength(value, name=name) if or_number else value, name=name)
    if value.shape != x.shape:
        other = "a number or " if or_number else ""
        raise ValueError(f"`{name}` must be {other}an array of the shape of `x`, {x.shape}, got {describe(value)}")
    return value.astype(x.dtype)


def checked_step(step: Any, x: jax.Array, *, for_each: bool = True) -> jax.Array:
    """The step of a prox of `x` in its dtype: a scalar, or where `for_each` allows it an array of its shape."""
    step = as_real(checked_strength(step, name="step"), name="step")
    if step.ndim and not (for_each and step.shape == x.shape):
        other = f" or an array of the shape of `x`, {x.shape}" if for_each else ", since the weights are not separate"
        raise ValueError(f"`step` must be a scalar{other}; got {describe(step)}")
    return step.astype(x.dtype)


def times_strength(step: Any, strength: Any, *, name: str) -> jax.Array:
    """`step * strength`, which is the step of a prox of the penalty without its strength."""
    step = as_real(checked_strength(step, name="step"), name="step")
    strength = _scalar_strength(strength, name=name)
    dtype = accumulation_dtype(step.dtype, strength.dtype)
    return step.astype(dtype) * strength.astype(dtype)


def _near_one(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` with magnitudes of at most 1 along `axes`; and the factors that are taken out of it, with their reciprocals.

    Both are constants from tiny to 1 / tiny: hardware may take a smaller number for 0.
    """
    tiny = np.finfo(x.dtype).tiny
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axes, keepdims=True, initial=tiny)
    factor = jnp.minimum(largest, 1 / tiny)
    reciprocal = 1 / factor
    return x * reciprocal, factor, reciprocal


def norms(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """‖x‖ over `axes`, which are kept as 1, in two factors: a constant of its magnitude, and what is left of it.

    So no square overflows, and no quotient by the norm does. The gradient at a zero vector is 0.
    """
    x, factor, _ = _near_one(x, axes)
    squares = jnp.sum(jnp.square(x), axis=axes, keepdims=True)
    zero = squares == 0
    return factor, jnp.where(zero, jnp.zeros_like(squares), jnp.sqrt(jnp.where(zero, jnp.ones_like(squares), squares)))


class UnitRows(NamedTuple):
    """Rows over max(norm, epsilon), with what `pull_back` needs: that division, in two factors, and which it is."""

    units: jax.Array
    inverse: jax.Array
    reciprocal: jax.Array
    is_long: jax.Array

    def pull_back(self, cotangents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The cotangents of the rows from those of the units, (g − u⟨u, g⟩)/norm; and the products ⟨u, g⟩."""
        products = jnp.sum(self.units * cotangents, axis=-1, keepdims=True)
        along = self.units * jax.lax.select(self.is_long, products, jnp.zeros_like(products))
        return (cotangents - along) * self.inverse * self.reciprocal, products


def unit_rows(x: jax.Array, epsilon: float = 1e-7) -> UnitRows:
    """The last axis of `x` over max(norm, epsilon), finite for every finite `x`.

    A row is brought to magnitude 1 before it is squared, so that no square overflows. The result does
    not depend on that factor, which is why its gradient may be stopped. A row whose norm is below
    `epsilon` is divided by `epsilon`: its gradient is the plain one, and that of a zero row is finite.
    """
    rows, _, reciprocal = _near_one(x, (-1,))
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    least = epsilon * reciprocal
    is_long = jnp.sqrt(squares) > least
    norms = jnp.sqrt(jax.lax.select(is_long, squares, jnp.ones_like(squares)))
    inverse = 1 / jax.lax.select(is_long, norms, least)
    return UnitRows(rows * inverse, inverse, reciprocal, is_long)
