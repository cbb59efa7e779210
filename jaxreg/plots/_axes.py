"""Axes, legends and colors of all pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxreg._checks import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot

Place = Literal["inside", "beside", "below"]  # of a legend

# Okabe and Ito's colors without black, in an order in which neighbors differ most.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
GREY, PALE = "#999999", "#DDDDDD"


def drawable(ax: Any, inches: tuple[float, float] | None = None) -> "Plot":
    """Returns the axes to draw into: those that were given, or those of a new figure."""
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes as Plot
    except ImportError as error:
        raise ImportError('`jaxreg.plots` needs matplotlib: pip install "jaxreg[plots]"') from error
    if ax is None:
        return pyplot.subplots(figsize=inches, layout="constrained")[1]
    if not isinstance(ax, Plot) or ax.name == "3d":
        raise TypeError(f"`ax` must be matplotlib Axes of two dimensions or None, got {describe(ax)}")
    return ax


def inches(labels: Sequence[str]) -> tuple[float, float]:
    """Returns the size of a figure that has room for a legend beside its axes."""
    names = _names_in_legend(labels)
    return 6.4 + 0.08 * max(map(len, names), default=0), max(4.8, 0.2 * len(names))


def _names_in_legend(labels: Sequence[str]) -> list[str]:
    """Returns labels that are short, without what they all end with if they would be equal otherwise."""
    short = [shortened(label, 56) for label in labels]
    if len(set(short)) == len(set(labels)):
        return short
    keys = [label.split("/") for label in labels]
    from_the_end = zip(*(parts[::-1] for parts in keys), strict=False)
    shared = next((count for count, parts in enumerate(from_the_end) if len(set(parts)) > 1), 0)
    return ["/".join([*parts[: len(parts) - shared], *["…"] * bool(shared)]) for parts in keys]


def legend(ax: "Plot", handles: Sequence[Any], labels: Sequence[str], *, place: Place = "inside") -> None:
    """Adds a legend whose labels are shown as they are. matplotlib would take `$` for mathematics, and hide `_`."""
    places: dict[str, dict[str, Any]] = {
        "inside": {"loc": "best"},
        "beside": {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.5},
        "below": {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.5},
    }
    legend = ax.legend(handles, [str(number) for number in range(len(labels))], fontsize="small", **places[place])
    for text, name in zip(legend.get_texts(), _names_in_legend(labels), strict=True):
        text.set(parse_math=False, usetex=False, text=name)


def shortened(text: str, most: int) -> str:
    """Returns a text of at most so many letters. Those in its middle are left out, since paths differ at their ends."""
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def number(count: Any, of: str) -> str:
    """Returns a number of things, such as "1 pair" or "2,000 pairs"."""
    return f"{count:,} {of}{'s' * int(count != 1)}"


def whole_ticks(ax: "Plot", which: str) -> None:
    """Lets the ticks of a linear axis stand at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    for letter in which:
        (ax.xaxis if letter == "x" else ax.yaxis).set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
