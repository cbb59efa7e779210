"""Pictures of singular values."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxreg._matrix import Axes
from jaxreg._names import public
from jaxreg.diagnostics._spectra import spectra_of
from jaxreg.plots._axes import COLORS, GREY, drawable, inches, legend, shortened, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot


@public
def singular_values(tree: Any, *, out_axis: Axes = -1, batch_axis: Axes = (), ax: "Plot | None" = None) -> "Plot":
    """Draws the singular values of one kernel, or of all kernels of a tree, from the largest to the smallest.

    The axis is logarithmic. Where a kernel of low rank has zeros, it is linear below a dotted line, so that it ends at
    0. What is less than the rounding of a decomposition in float64 counts as 0. A tree of up to 14 kernels has a
    legend. For more of them, the colors go through the tree from the first path to the last. The matrices of a batch
    have one color.

    Args:
      tree: a real floating-point array of rank >= 2, or a tree of parameters that `jaxreg.Rules` take. Of a tree, the
        arrays are drawn whose rank is 2 more than the number of batch axes, or higher.
      out_axis: the axis or axes that are the columns, as in `jaxreg.diagnostics.cosines`.
      batch_axis: the axis or axes that count independent matrices.
      ax: the matplotlib `Axes` to draw into.

    Returns:
      The `Axes`.

    Raises:
      TypeError, ValueError: `tree` holds no matrices, or no values, or an axis does not fit a kernel. The message has
        its path.
      ImportError: matplotlib is not installed.

    >>> params = {"hidden": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.eye(3)}}
    >>> ax = jaxreg.plots.singular_values(params)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['head/kernel', 'hidden/kernel']
    """
    spectra = spectra_of(tree, out_axis, batch_axis)
    known = np.concatenate([many.ravel() for many in spectra.values()])
    known = known[np.isfinite(known)]
    positive, longest = known[known > 0], max(many.shape[1] for many in spectra.values())
    missing = {path: int(np.isnan(many).any(axis=1).sum()) for path, many in spectra.items()}
    labels = [_label_of_spectra(path, len(many), missing[path]) for path, many in spectra.items()]
    has_legend = len(spectra) <= 2 * len(COLORS)

    is_own = ax is None
    ax = drawable(ax, inches(labels if has_legend else []))
    from matplotlib import colormaps

    lines, every = [], []
    for place, (path, many) in enumerate(spectra.items()):
        color: Any = COLORS[place % len(COLORS)]
        style, width = "-" if place < len(COLORS) else "--", 1.3
        if not has_legend:
            color, style, width = colormaps["cividis"](place / (len(spectra) - 1)), "-", 0.7
        # A short spectrum shows its points, and one of a single value has nothing else.
        marker = "o" if (many.shape[1] <= 30 and has_legend) or many.shape[1] == 1 else ""
        drawn = many[~np.isnan(many).any(axis=1)] if missing[path] < len(many) else many[:1]
        numbers = np.arange(1, many.shape[1] + 1)
        curves = ax.plot(numbers, drawn.T, style, marker=marker, markersize=3.5, color=color, linewidth=width)
        lines.append(curves[0])
        every += curves
    words = "singular value"
    if positive.size < known.size:
        # Zeros have a place below the power of ten that all others lie above.
        decades = np.floor(np.log10([positive.min(), positive.max()])) if positive.size else np.zeros(2)
        ax.set_yscale("symlog", linthresh=10.0 ** decades[0], linscale=max(0.5, 0.08 * np.ptp(decades)))
        ax.set_ylim(0, None if positive.size else 1)
        ax.axhline(10.0 ** decades[0], color=GREY, linestyle=":", linewidth=1)
        for line in every:
            line.set_clip_on(False)  # points at 0 would be cut in half
        words += ", log above the dotted line"
    else:
        ax.set_yscale("log")
    ax.set_xlim(0.5, longest + 0.5)
    whole_ticks(ax, "x")
    ax.set(xlabel="number of the singular value, from the largest", ylabel=words)
    if has_legend:
        legend(ax, lines, labels, place="beside" if is_own and len(labels) > 1 else "inside")
    else:
        _bar_of_paths(ax, list(spectra), missing=sum(map(bool, missing.values())))
    return ax


def _label_of_spectra(path: str, count: int, missing: int) -> str:
    """Returns the name of a kernel in a legend, with the number of its matrices and of those that are not finite."""
    notes = [] if count == 1 else [f"{count} matrices"]
    if missing:
        notes.append("NaN or infinite" if missing == count else f"{missing} NaN or infinite")
    return (path or "the array") + (f" ({', '.join(notes)})" if notes else "")


def _bar_of_paths(ax: "Plot", paths: list[str], missing: int) -> None:
    """Adds a color bar in place of a legend, from the first path to the last."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    last = len(paths) - 1
    bar = ax.figure.colorbar(ScalarMappable(Normalize(0, last), colormaps["cividis"]), ax=ax)
    texts = [shortened(path, 30) for path in (paths[0], paths[last // 2], paths[-1])]
    bar.set_ticks([0, last // 2, last], labels=texts)
    for text in bar.ax.get_yticklabels():
        text.set(parse_math=False, usetex=False, fontsize="small")
    bar.set_label(f"path, of {len(paths)}" + (f" ({missing} with NaN or infinity)" if missing else ""))
