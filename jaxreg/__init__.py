"""Weight regularization for JAX.

A penalty is a function from an array to a scalar (`jaxreg.penalties`), and its prox one from an array and a step to
an array (`jaxreg.prox`). A regularizer is a penalty with its strength, as a pytree (`L1`, `GroupLasso`, your own
`Regularizer`; `get`, `serialize` and `deserialize` turn names and dicts into them and back). `Rules` choose
regularizers for the parameters of a tree by path. `add_penalty_gradients` puts rules in an optax chain, `proximal`
ends the steps of an optimizer with their prox, for exact zeros, and `activity_penalty` applies them to layer outputs.
`jaxreg.diagnostics` measures weights.
"""

from jaxreg import diagnostics as diagnostics
from jaxreg import penalties as penalties
from jaxreg import prox as prox
from jaxreg._activity import activity_penalty as activity_penalty
from jaxreg._base import Regularizer as Regularizer
from jaxreg._config import deserialize as deserialize
from jaxreg._config import get as get
from jaxreg._config import serialize as serialize
from jaxreg._proximal import ProximalState as ProximalState
from jaxreg._proximal import proximal as proximal
from jaxreg._regularizers import L0 as L0
from jaxreg._regularizers import L1 as L1
from jaxreg._regularizers import L1L2 as L1L2
from jaxreg._regularizers import L2 as L2
from jaxreg._regularizers import MCP as MCP
from jaxreg._regularizers import SCAD as SCAD
from jaxreg._regularizers import FramePotential as FramePotential
from jaxreg._regularizers import GroupLasso as GroupLasso
from jaxreg._regularizers import Huber as Huber
from jaxreg._regularizers import LHalf as LHalf
from jaxreg._regularizers import LInf as LInf
from jaxreg._regularizers import LogSum as LogSum
from jaxreg._regularizers import Nuclear as Nuclear
from jaxreg._regularizers import OrthogonalRegularizer as OrthogonalRegularizer
from jaxreg._regularizers import SparseGroupLasso as SparseGroupLasso
from jaxreg._regularizers import Spectral as Spectral
from jaxreg._rules import Rules as Rules
from jaxreg._transforms import PenaltyState as PenaltyState
from jaxreg._transforms import add_penalty_gradients as add_penalty_gradients

__all__ = [
    "L0",
    "L1",
    "L1L2",
    "L2",
    "MCP",
    "SCAD",
    "FramePotential",
    "GroupLasso",
    "Huber",
    "LHalf",
    "LInf",
    "LogSum",
    "Nuclear",
    "OrthogonalRegularizer",
    "PenaltyState",
    "ProximalState",
    "Regularizer",
    "Rules",
    "SparseGroupLasso",
    "Spectral",
    "activity_penalty",
    "add_penalty_gradients",
    "deserialize",
    "diagnostics",
    "get",
    "penalties",
    "prox",
    "proximal",
    "serialize",
]

__version__ = "0.1.0"
