"""Checks of arguments, and the words for what an error got.

Python and NumPy numbers are checked by value. The values of jax arrays are never inspected, because they may be traced.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def describe(x: Any) -> str:
    """Returns what an error says it got: `float32[3,4]` for an array, else the type and the value."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    if x is None:
        return "None"
    shown = isinstance(x, str | bool | int | float | complex | np.generic | type)
    return f"{type(x).__name__} {x!r}" if shown else type(x).__name__


def brief(value: Any) -> str:
    """Returns how a repr shows a value: its number or name where it has one, else its dtype and shape."""
    if isinstance(value, jax.core.Tracer):
        return f"traced {describe(value)}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{float(value):.6g}" if value.ndim == 0 else describe(value)
    text = repr(value)
    return getattr(value, "__name__", type(value).__name__) if text.startswith("<") else text


def is_inexact_array(x: Any) -> bool:
    """Returns whether `x` has a shape and a floating-point dtype, real or complex."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and hasattr(x, "shape") and jnp.issubdtype(dtype, jnp.inexact)


def is_float_array(x: Any) -> bool:
    """Returns whether `x` has a shape and a real floating-point dtype. A `jax.ShapeDtypeStruct` may have both."""
    return is_inexact_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def as_real(value: Any, *, name: str) -> jax.Array:
    """Returns a number, or an array of numbers, that is neither complex nor a bool, as an array."""
    if isinstance(value, jax.Array | np.ndarray | np.generic | int | float) and not isinstance(value, bool):
        dtype = jnp.asarray(value).dtype if isinstance(value, int | float) else value.dtype
        if jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer):
            return jnp.asarray(value)
    raise TypeError(f"`{name}` must be a real number, got {describe(value)}")


def checked_number(
    value: Any, *, name: str, unset: float | None = None, above: float | None = None, most: float | None = None
) -> Any:
    """Returns `value` for a constructor: Python and NumPy numbers must be finite and >= 0, jax arrays are kept.

    An int becomes a float, and None becomes `unset` where that is given. With `above`, numbers must be greater than it,
    and with `most` they must be at most that.
    """
    if value is None and unset is not None:
        return unset
    if isinstance(value, jax.Array):
        return as_real(value, name=name)
    _check_type(value, name=name)
    in_range = np.asarray(value) >= 0 if above is None else np.asarray(value) > above
    if most is not None:
        in_range &= np.asarray(value) <= most
    if not np.all(np.isfinite(value) & in_range):
        least = ">= 0" if above is None else f"> {above:g}"
        limits = least if most is None else f"{least} and <= {most:g}"
        raise ValueError(f"`{name}` must be finite and {limits}, got {value!r}")
    return _as_float(value)


def checked_bound(value: Any, *, name: str) -> Any:
    """Returns a number of either sign for a constructor, which may be infinite. jax arrays are kept."""
    if isinstance(value, jax.Array):
        return as_real(value, name=name)
    _check_type(value, name=name)
    if np.any(np.isnan(value)):
        raise ValueError(f"`{name}` must be a number or infinite, got {value!r}")
    return _as_float(value)


def _check_type(value: Any, *, name: str) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating | np.ndarray):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}")
    if np.asarray(value).dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must hold numbers, got {describe(value)}")


def _as_float(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind == "f" else value.astype(np.float64)
    return float(value) if isinstance(value, int | np.integer) else value


def checked_scalar(value: Any, *, name: str, above: float | None = None) -> Any:
    """Returns what `checked_number` returns, which must be a single number."""
    value = checked_number(value, name=name, above=above)
    check_single(value, name=name)
    return value


def check_single(value: Any, *, name: str) -> None:
    """Raises an error for an array of several numbers."""
    if np.ndim(value):
        raise ValueError(f"`{name}` must be a scalar, got {describe(value)}")


def is_schedule(value: Any) -> bool:
    """Returns whether `value` is a function. A class is none, nor is a pytree that can be called, as rules can."""
    return callable(value) and not isinstance(value, type) and jax.tree_util.all_leaves([value])


def checked_schedule(value: Any, *, name: str) -> Any:
    """Returns a schedule, which must be a function of one count."""
    try:
        inspect.signature(value).bind(0)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a number, or a schedule that takes a count, got {brief(value)}") from error
    except ValueError:
        pass  # it shows no signature
    return value


def at_count(value: Any, count: Any, *, name: str) -> jax.Array:
    """Returns a number, or a schedule at `count`, as a scalar. Numbers of Python and NumPy are checked."""
    if callable(value):
        value = value(count)
        if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
            value = checked_scalar(value, name=name)
    value = as_real(value, name=name)
    check_single(value, name=name)
    return value


def checked_count(value: Any, *, name: str, least: int | None) -> int:
    """Returns an int, which must be at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an int, got {describe(value)}")
    if least is not None and value < least:
        raise ValueError(f"`{name}` must be >= {least}, got {value}")
    return int(value)


def check_bool(value: Any, *, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool, got {describe(value)}")


def check_key(key: Any, *, or_old: bool = False) -> None:
    """Checks a random key. Where nothing is kept, it may be one of the old kind, from `jax.random.PRNGKey`."""
    if key is None:
        return
    is_array = isinstance(key, jax.Array | np.ndarray)
    is_new = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    is_old = is_array and key.dtype == np.uint32 and key.shape in ((2,), (4,))
    if not is_new and not (or_old and is_old):
        # An `nnx.Rngs` has every attribute that it is asked for.
        got = describe(key) if is_array or isinstance(key, int | float | str) else type(key).__name__
        raise TypeError(f"`key` must be a key from `jax.random.key`, got {got}")


def option(value: Any, x: jax.Array, *, name: str, above: float | None = None, most: float | None = None) -> jax.Array:
    """Returns an option of a penalty of `x` as a scalar in the dtype of `x`. Python and NumPy numbers are checked."""
    value = as_real(checked_number(value, name=name, above=above, most=most), name=name)
    if value.ndim:
        raise ValueError(f"`{name}` must be a scalar, got {describe(value)}; map over several with `jax.vmap`")
    return value.astype(x.dtype)


def array_option(value: Any, x: jax.Array, *, name: str, or_number: bool = False) -> jax.Array:
    """Returns an option of the shape of `x` in the dtype of `x`, or a scalar where `or_number` allows it."""
    if or_number and not np.shape(value):
        return option(value, x, name=name)
    value = as_real(checked_number(value, name=name) if or_number else value, name=name)
    if value.shape != x.shape:
        other = "a number or " if or_number else ""
        raise ValueError(f"`{name}` must be {other}an array of the shape of `x`, {x.shape}, got {describe(value)}")
    return value.astype(x.dtype)


def checked_step(step: Any, x: jax.Array, *, for_each: bool = True) -> jax.Array:
    """Returns the step of a prox of `x` in the dtype of `x`.

    It is a scalar, or an array of the shape of `x` where `for_each` allows it.
    """
    step = as_real(checked_number(step, name="step"), name="step")
    if step.ndim and not (for_each and step.shape == x.shape):
        other = f" or an array of the shape of `x`, {x.shape}" if for_each else ", since the weights are not separate"
        raise ValueError(f"`step` must be a scalar{other}; got {describe(step)}")
    return step.astype(x.dtype)
