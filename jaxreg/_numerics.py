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
    if isinstance(strength, float) and value.dtype.type(strength) != 0:
        return float(strength) * value  # nothing to ignore, and less to compile
    strength = as_real(strength, name=name)
    if strength.ndim:
        raise ValueError(
            f"`{name}` must be a scalar where the regularizer is called, got shape "
            f"{strength.shape}; map over stacked strengths with `jax.vmap`"
        )
    strength = strength.astype(value.dtype)
    ignored = (strength == 0) & ~jnp.isfinite(value)
    return strength * jnp.where(ignored, jnp.zeros_like(value), value)


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


def checked_strength(value: Any, *, name: str, default: float | None = None) -> Any:
    """`value` for a constructor: Python and NumPy numbers finite and >= 0, jax arrays as they are.

    An int becomes a float, and None becomes `default` where there is one.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, jax.Array):
        return as_real(value, name=name)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating | np.ndarray):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}")
    if np.asarray(value).dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must hold numbers, got {describe(value)}")
    if not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
        raise ValueError(f"`{name}` must be finite and >= 0, got {value!r}")
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind == "f" else value.astype(np.float64)
    return float(value) if isinstance(value, int | np.integer) else value


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
    tiny = np.finfo(x.dtype).tiny
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True, initial=tiny)
    reciprocal = 1 / jnp.minimum(largest, 1 / tiny)  # from tiny to 1 / tiny: hardware may take a smaller one for 0
    rows = x * reciprocal
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    least = epsilon * reciprocal
    is_long = jnp.sqrt(squares) > least
    norms = jnp.sqrt(jax.lax.select(is_long, squares, jnp.ones_like(squares)))
    inverse = 1 / jax.lax.select(is_long, norms, least)
    return UnitRows(rows * inverse, inverse, reciprocal, is_long)
