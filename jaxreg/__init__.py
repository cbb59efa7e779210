"""Weight regularization for JAX: penalties, regularizers that are pytrees, rules by path, optax transforms."""

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
from jaxreg._regularizers import OrthogonalRegularizer as OrthogonalRegularizer
from jaxreg._rules import Rules as Rules
from jaxreg._transforms import PenaltyState as PenaltyState
from jaxreg._transforms import add_penalty_gradients as add_penalty_gradients

__version__ = "0.1.0"
