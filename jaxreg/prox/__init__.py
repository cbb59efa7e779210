"""Proximal operators: pure functions, each under the name of its penalty in `jaxreg.penalties`.

`prox.NAME(x, step)` returns argmin_y ½‖y − x‖² + step · penalties.NAME(y). It follows a step of gradient descent, with
the learning rate times the strength as the step, and reaches exact zeros. `x` is a real floating-point array, and the
result has its shape and dtype. It is computed in at least float32.

`step` is a number >= 0: a Python or NumPy number, which is checked, or a jax array, whose values are never inspected.
Where the penalty is a sum over weights or over groups, `step` may also be an array of the shape of `x`, with a step for
each weight. The result is then argmin_y ½ Σ (y − x)²/step + penalty(y). A step of 0 leaves its weight as it is (to
rounding, for singular values), and NaN stays NaN. Options are checked as those of the penalties are.

The prox of a convex penalty is unique, and two results are never further apart than their `x` are. The others may have
two minima at single points, where the smaller weight is taken. Derivatives hold almost everywhere and are never NaN for
finite arguments.

Each penalty has a regularizer on `jaxreg`, whose docstring has the full text: when to use it, and the source.
"""

from jaxreg._names import list_names as _list_names
from jaxreg.prox._elementwise import *
from jaxreg.prox._groups import *
from jaxreg.prox._neighbors import *
from jaxreg.prox._norms import *
from jaxreg.prox._orthogonality import *

_list_names(__name__)
