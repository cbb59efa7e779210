"""The regularizers that jaxreg ships: frozen data, and one line each that names the maths."""

from jaxreg._names import list_names as _list_names
from jaxreg._regularizers._elementwise import *
from jaxreg._regularizers._groups import *
from jaxreg._regularizers._neighbors import *
from jaxreg._regularizers._norms import *
from jaxreg._regularizers._orthogonality import *
from jaxreg._regularizers._outputs import *

_list_names(__name__)
