"""Arrays whose values are looked at, outside of compiled functions."""

from typing import Any

import jax
import numpy as np

from jaxreg._checks import describe, is_float_array
from jaxreg._numerics import as_floats


def check_values(x: Any, *, name: str) -> None:
    """Raises an error for a shape, and for what is traced."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"`{name}` must have values, got traced {describe(x)}: call it outside of `jax.jit`")
    if isinstance(x, jax.ShapeDtypeStruct):
        raise TypeError(f"`{name}` must have values, got the shape {describe(x)}")


def with_values(x: Any, *, name: str = "x") -> np.ndarray:
    """Returns an array of floats as one of NumPy, in its own dtype, which JAX may not have."""
    check_values(x, name=name)
    if not isinstance(x, np.ndarray):
        x = as_floats(x, name=name)
    if not is_float_array(x):
        raise TypeError(f"`{name}` must be a real floating-point array, got {describe(x)}")
    return np.asarray(x)
