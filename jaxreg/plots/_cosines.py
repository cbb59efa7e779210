"""Pictures of the angles between the vectors of a kernel."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import checked_count, describe
from jaxreg._matrix import Axes, Mode
from jaxreg._names import public
from jaxreg._values import check_values
from jaxreg.diagnostics import cosines
from jaxreg.plots._axes import BLUE, GREY, VERMILLION, drawable, legend, number, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot


@public
def cosine_matrix(
    x: ArrayLike,
    *,
    mode: Mode = "rows",
    out_axis: Axes = -1,
    batch_axis: Axes = (),
    index: int | None = None,
    ax: "Plot | None" = None,
) -> "Plot":
    """Draws the cosines between all rows (or columns) of a kernel as a matrix, with 0 in white.

    The scale ends at the least of ±0.1, ±0.2, ±0.5 and ±1 within which all cosines between two distinct rows lie, so
    that pictures with the same scale can be compared. The diagonal may lie beyond it. The diagonal entry of a zero row
    is white. NaN is grey.

    Args:
      x: a real floating-point array of rank >= 2.
      mode: "rows" or "columns", the vectors that are compared.
      out_axis: the axis or axes that are the columns, as in `jaxreg.diagnostics.cosines`.
      batch_axis: the axis or axes that count independent matrices.
      index: which matrix is drawn, where there are several.
      ax: the matplotlib `Axes` to draw into.

    Returns:
      The `Axes`. A color bar stands beside them.

    Raises:
      TypeError, ValueError: `x` holds no rows, or several matrices without `index`, or as `jaxreg.diagnostics.cosines`
        does.
      ImportError: matplotlib is not installed.

    >>> ax = jaxreg.plots.cosine_matrix(jnp.array([[3.0, 0.0], [0.0, -2.0], [1.0, 1.0]]))
    >>> ax.get_title()
    'largest |cosine| of two rows: 0.707'
    """
    grams = _grams(x, mode, out_axis, batch_axis)
    count, n = grams.shape[:2]
    if index is None:
        if count > 1:
            raise ValueError(f"`index` must say which of the {count} matrices is drawn, got None")
        index = 0
    elif checked_count(index, name="index", least=0) >= count:
        raise ValueError(f"`index` must be less than the number of matrices, {count}, got {index}")
    gram = grams[index]
    apart = np.abs(gram[~np.eye(n, dtype=bool)])
    limit = _limit(apart)
    title = [] if count == 1 else [f"matrix {index} of {count}"]
    title += [f"largest |cosine| of two {mode}: {_largest(apart):.3g}" if n > 1 else f"a single {mode[:-1]}"]
    title += ["grey: NaN"] if np.isnan(gram).any() else []

    ax = drawable(ax)
    from matplotlib import colormaps

    colors = colormaps["RdBu_r"].with_extremes(bad=GREY)
    image = ax.imshow(gram, cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="cosine", extend="neither" if limit == 1 else "max")
    ax.set(xlabel=f"{mode[:-1]} (index)", ylabel=f"{mode[:-1]} (index)")
    whole_ticks(ax, "xy")
    ax.set_title("\n".join(title), fontsize="medium")
    return ax


@public
def cosine_histogram(
    x: ArrayLike, *, mode: Mode = "rows", out_axis: Axes = -1, batch_axis: Axes = (), ax: "Plot | None" = None
) -> "Plot":
    """Draws how many pairs of distinct rows (or columns) have which cosine, over all matrices of a kernel.

    For n vectors in d < n dimensions, lines mark the Welch bound ±√((n−d)/(d(n−1))): the largest |cosine| is never
    less. For n <= d a line marks 0, which all cosines can reach. Zero rows, and those with NaN, do not count, and the
    title says how many pairs they leave out.

    Args:
      x: a real floating-point array of rank >= 2.
      mode: "rows" or "columns", the vectors that are compared.
      out_axis: the axis or axes that are the columns, as in `jaxreg.diagnostics.cosines`.
      batch_axis: the axis or axes that count independent matrices.
      ax: the matplotlib `Axes` to draw into.

    Returns:
      The `Axes`.

    Raises:
      TypeError, ValueError: `x` holds no rows, or as `jaxreg.diagnostics.cosines` does.
      ImportError: matplotlib is not installed.

    >>> ax = jaxreg.plots.cosine_histogram(jnp.array([[3.0, 0.0], [0.0, -2.0], [1.0, 1.0]]))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['Welch bound ±0.5']

    Source: Welch, Lower bounds on the maximum cross correlation of signals, 1974.
    """
    grams = _grams(x, mode, out_axis, batch_axis)
    count, n = grams.shape[:2]
    d = np.size(x) // (count * n)
    own = np.diagonal(grams, axis1=1, axis2=2)  # 0 for a zero row
    first, second = np.triu_indices(n, 1)
    values = grams[:, first, second]
    has_zero, is_nan = (own[:, first] == 0) | (own[:, second] == 0), np.isnan(values)
    shown = values[~has_zero & ~is_nan]
    title = [f"{number(shown.size, 'pair')} of {mode}" if n > 1 else f"a single {mode[:-1]} has no pairs"]
    if has_zero.any():
        title.append(f"left out: {number(has_zero.sum(), 'pair')} with a zero {mode[:-1]}")
    if (is_nan & ~has_zero).any():
        title.append(f"left out: {number((is_nan & ~has_zero).sum(), 'pair')} with NaN")
    n = int((own > 0).sum(axis=1).max())
    welch = math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0
    limit = _limit(np.append(np.abs(shown), welch))

    ax = drawable(ax)
    # Rounding may take a cosine beyond 1, and a bar outside of the scale is not drawn. Of 51 bins, one is around 0.
    ax.hist(np.clip(shown, -limit, limit), bins=51, range=(-limit, limit), color=BLUE)
    style: dict[str, Any] = {"color": VERMILLION, "linestyle": "--", "linewidth": 1.5}
    if welch:
        line = ax.axvline(welch, **style)
        ax.axvline(-welch, **style)
    else:
        line = ax.axvline(0.0, **style)
    legend(ax, [line], [f"Welch bound ±{welch:.3g}" if welch else "orthogonal"])
    ax.set(xlabel=f"cosine of two {mode}", ylabel="number of pairs", xlim=(-limit, limit))
    ax.set_ylim(0, None if shown.size else 1)
    whole_ticks(ax, "y")
    ax.set_title("\n".join(title), fontsize="medium")
    return ax


def _grams(x: ArrayLike, mode: Mode, out_axis: Axes, batch_axis: Axes) -> np.ndarray:
    """Returns the cosines of all matrices, as an array (matrices, n, n)."""
    check_values(x, name="x")
    grams = np.asarray(cosines(x, mode=mode, out_axis=out_axis, batch_axis=batch_axis))
    if not grams.size:
        raise ValueError(f"`x` must hold at least one of the {mode}, got {describe(x)}")
    return grams.reshape(-1, *grams.shape[-2:])


def _largest(sizes: np.ndarray) -> float:
    """Returns the largest of sizes, NaN aside, and NaN where there is nothing else."""
    known = sizes[~np.isnan(sizes)]
    return float(known.max()) if known.size else math.nan


def _limit(sizes: np.ndarray) -> float:
    """Returns where a scale of cosines ends, so that it holds all these sizes."""
    return next((limit for limit in (0.1, 0.2, 0.5) if _largest(sizes) <= limit), 1.0)
