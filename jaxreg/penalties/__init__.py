"""Penalties: pure functions from an array to a scalar, without a strength and without state.

Every penalty takes a real floating-point array, and anything else is a `TypeError`. It adds up in at least float32 and
returns a scalar in that dtype: float64 for a float64 array, and float32 for every narrower one. Its gradient has the
dtype of the array. The subgradient of |·| at 0 is 0, so a weight that is exactly zero is not pushed.

Options come by keyword. An option that is a number may be a Python or NumPy number, which is checked, or a jax array,
whose value is never inspected. A bad number is a `TypeError` or a `ValueError` that names the option.

Each penalty has a regularizer on `jaxreg`, whose docstring has the full text: when to use it, and the source.
"""

from jaxreg._names import list_names as _list_names
from jaxreg.penalties._elementwise import *
from jaxreg.penalties._groups import *
from jaxreg.penalties._neighbors import *
from jaxreg.penalties._norms import *
from jaxreg.penalties._orthogonality import *
from jaxreg.penalties._outputs import *
from jaxreg.penalties._pairs import *

_list_names(__name__)
