"""Pictures of weights, penalties and rules, drawn by matplotlib.

matplotlib is optional: `pip install "jaxreg[plots]"`. It is imported when the first picture is drawn.

Each function draws into `ax`, or into a new figure that is large enough, and returns the `Axes`. Save the picture by
`ax.figure.savefig("picture.png")`. Axes of your own need a figure with `layout="constrained"`, so that legends have
room. No function calls `plt.show`, or changes a setting of matplotlib. Colors are those of Okabe and Ito, or a map that
color-blind readers can tell apart too.
"""

from jaxreg._names import list_names as _list_names
from jaxreg.plots._cosines import *
from jaxreg.plots._penalties import *
from jaxreg.plots._sparsity import *
from jaxreg.plots._spectra import *
from jaxreg.plots._trees import *

_list_names(__name__)
