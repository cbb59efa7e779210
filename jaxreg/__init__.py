"""Weight regularization for JAX.

A penalty is a function from an array to a scalar, and its prox a function from an array and a step to an array. They
are in `jaxreg.penalties` and `jaxreg.prox`. A regularizer is a penalty with its strength, as a pytree: `L1`,
`GroupLasso`, or your own subclass of `Regularizer`. A constraint is a set, as the projection on it. Constraints are in
`jaxreg.constraints`. `get`, `serialize` and `deserialize` turn names and dicts into both and back. `Rules` choose them
for the parameters of a tree by path.

`add_penalty_gradients` puts rules into an optax chain. `proximal` ends the steps of an optimizer with their prox, which
reaches exact zeros. `activity_penalty` applies rules to layer outputs. `jaxreg.diagnostics` measures weights, and
`jaxreg.plots` draws them.
"""

from jaxreg import constraints as constraints
from jaxreg import diagnostics as diagnostics
from jaxreg import penalties as penalties
from jaxreg import plots as plots
from jaxreg import prox as prox
from jaxreg._activity import activity_penalty as activity_penalty
from jaxreg._base import Regularizer as Regularizer
from jaxreg._keras import from_keras as from_keras
from jaxreg._names import list_names as _list_names
from jaxreg._optimizers import proximal_adam as proximal_adam
from jaxreg._optimizers import proximal_adamw as proximal_adamw
from jaxreg._optimizers import proximal_sgd as proximal_sgd
from jaxreg._proximal import ProximalState as ProximalState
from jaxreg._proximal import proximal as proximal
from jaxreg._regularizers import *
from jaxreg._rules import Rules as Rules
from jaxreg._serialization import deserialize as deserialize
from jaxreg._serialization import get as get
from jaxreg._serialization import serialize as serialize
from jaxreg._transforms import DecoupledState as DecoupledState
from jaxreg._transforms import PenaltyState as PenaltyState
from jaxreg._transforms import add_penalty_gradients as add_penalty_gradients
from jaxreg._transforms import decoupled as decoupled

__version__ = "0.1.0"

_list_names(__name__)
