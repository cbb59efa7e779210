"""Constraints: sets that weights are kept in, each as the projection on it.

A constraint is a callable from an array to the nearest array of its set. Rules take constraints beside regularizers.
`jaxreg.proximal` and the proximal optimizers then project after each step, and `rules.prox(params)` projects a tree.

>>> rules = jaxreg.Rules((r"kernel$", jaxreg.constraints.MaxNorm(1.0)), (r"bias$", jaxreg.constraints.NonNeg()))
>>> tx = jaxreg.proximal(optax.adam(1e-3), rules)
"""

from jaxreg._constraint import Constraint as Constraint
from jaxreg._names import list_names as _list_names
from jaxreg.constraints._elementwise import *
from jaxreg.constraints._groups import *
from jaxreg.constraints._norms import *
from jaxreg.constraints._sparsity import *

_list_names(__name__)
