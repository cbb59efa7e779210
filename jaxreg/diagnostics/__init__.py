"""Numbers about weights: angles, spectra, exact zeros, Fisher information, and a history of penalties."""

from jaxreg._names import list_names as _list_names
from jaxreg.diagnostics._cosines import *
from jaxreg.diagnostics._fisher import *
from jaxreg.diagnostics._history import *
from jaxreg.diagnostics._sparsity import *
from jaxreg.diagnostics._spectra import *

_list_names(__name__)
