"""Weight regularization for JAX.

A penalty is a function from an array to a scalar (`jaxreg.penalties`). A regularizer is a penalty with its strength,
as a pytree (`L1`, `L2`, `L1L2`, `OrthogonalRegularizer`, `FramePotential`, your own `Regularizer`; `get`, `serialize`
and `deserialize` turn names and dicts into them and back). `Rules` choose regularizers for the parameters of a tree by
path. `add_penalty_gradients` puts rules in an optax chain, and `activity_penalty` applies them to layer outputs.
`jaxreg.diagnostics` measures weights.
"""

from jaxreg import diagnostics as diagnostics
from jaxreg import penalties as penalties
from jaxreg._activity import activity_penalty as activity_penalty
from jaxreg._base import Regularizer as Regularizer
from jaxreg._config import deserialize as deserialize
from jaxreg._config import get as get
from jaxreg._config import serialize as serialize
from jaxreg._regularizers import L1 as L1
from jaxreg._regularizers import L1L2 as L1L2
from jaxreg._regularizers import L2 as L2
from jaxreg._regularizers import FramePotential as FramePotential
from jaxreg._regularizers import OrthogonalRegularizer as OrthogonalRegularizer
from jaxreg._rules import Rules as Rules
from jaxreg._transforms import PenaltyState as PenaltyState
from jaxreg._transforms import add_penalty_gradients as add_penalty_gradients

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "FramePotential",
    "OrthogonalRegularizer",
    "PenaltyState",
    "Regularizer",
    "Rules",
    "activity_penalty",
    "add_penalty_gradients",
    "deserialize",
    "diagnostics",
    "get",
    "penalties",
    "serialize",
]

__version__ = "0.1.0"
