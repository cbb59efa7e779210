"""Penalties: pure functions from an array to a scalar, without a strength and without state.

Every one of them takes a real floating-point array, accumulates in at least float32, and returns a scalar of that
dtype: float64 for a float64 `x`, float32 for everything narrower. Its gradient has the dtype of `x`, and |·| has the
subgradient 0 at 0: a weight that is exactly zero is not pushed. Anything but such an array is a `TypeError`. Options
that are numbers may be Python numbers, checked when called, or jax arrays, never checked.
"""

from jaxreg.penalties._elementwise import anchor as anchor
from jaxreg.penalties._elementwise import huber as huber
from jaxreg.penalties._elementwise import l0 as l0
from jaxreg.penalties._elementwise import l1 as l1
from jaxreg.penalties._elementwise import l1_l2 as l1_l2
from jaxreg.penalties._elementwise import l2 as l2
from jaxreg.penalties._elementwise import l_half as l_half
from jaxreg.penalties._elementwise import log_sum as log_sum
from jaxreg.penalties._elementwise import mcp as mcp
from jaxreg.penalties._elementwise import scad as scad
from jaxreg.penalties._groups import group_lasso as group_lasso
from jaxreg.penalties._groups import linf as linf
from jaxreg.penalties._groups import sparse_group_lasso as sparse_group_lasso
from jaxreg.penalties._orthogonality import frame_potential as frame_potential
from jaxreg.penalties._orthogonality import orthogonal as orthogonal
from jaxreg.penalties._singular import nuclear as nuclear
from jaxreg.penalties._singular import spectral as spectral

__all__ = [
    "anchor",
    "frame_potential",
    "group_lasso",
    "huber",
    "l0",
    "l1",
    "l1_l2",
    "l2",
    "l_half",
    "linf",
    "log_sum",
    "mcp",
    "nuclear",
    "orthogonal",
    "scad",
    "sparse_group_lasso",
    "spectral",
]
