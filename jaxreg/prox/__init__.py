"""Proximal operators: pure functions, each under the name of its penalty in `jaxreg.penalties`.

`prox.NAME(x, step)` is argmin_y ½‖y − x‖² + step · penalties.NAME(y): what a step of gradient descent is followed by,
with the learning rate times the strength as the step, to reach exact zeros. `x` is a real floating-point array, and the
result has its shape and dtype; it is computed in at least float32. `step` is a number >= 0: a Python number, which is
checked, or a jax array, which is not.

Where the penalty is a sum over weights or over groups, `step` may be an array of the shape of `x`, a step for each
weight: argmin_y ½ Σ (y − x)²/step + penalty(y). A step of 0 leaves its
weight as it is (to rounding, of singular values), and NaN stays NaN.

Of a convex penalty the result is unique, and no two results are further apart than their `x`. The others may have two
minima at single points, where the smaller weight is taken. Derivatives hold almost everywhere and are never NaN.
"""

from jaxreg.prox._elementwise import anchor as anchor
from jaxreg.prox._elementwise import huber as huber
from jaxreg.prox._elementwise import l0 as l0
from jaxreg.prox._elementwise import l1 as l1
from jaxreg.prox._elementwise import l1_l2 as l1_l2
from jaxreg.prox._elementwise import l2 as l2
from jaxreg.prox._elementwise import l_half as l_half
from jaxreg.prox._elementwise import log_sum as log_sum
from jaxreg.prox._elementwise import mcp as mcp
from jaxreg.prox._elementwise import scad as scad
from jaxreg.prox._groups import group_lasso as group_lasso
from jaxreg.prox._groups import linf as linf
from jaxreg.prox._groups import sparse_group_lasso as sparse_group_lasso
from jaxreg.prox._singular import nuclear as nuclear
from jaxreg.prox._singular import spectral as spectral

__all__ = [
    "anchor",
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
    "scad",
    "sparse_group_lasso",
    "spectral",
]
