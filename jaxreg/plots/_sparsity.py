"""Pictures of what is exactly zero, and of what zeros cost."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import describe
from jaxreg._matrix import Axes, check_disjoint, positive_axes
from jaxreg._names import public
from jaxreg._values import with_values
from jaxreg.plots._axes import (
    BLUE,
    COLORS,
    ORANGE,
    PALE,
    VERMILLION,
    drawable,
    inches,
    legend,
    number,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot


@public
def sparsity_pattern(x: ArrayLike, *, group_axis: Axes = -1, batch_axis: Axes = (), ax: "Plot | None" = None) -> "Plot":
    """Draws which weights of an array are exactly zero, with one column for each group, and marks the dead groups.

    A group is dead where all its weights are exactly zero. Its column is orange, and has a triangle above it. Where
    there are more weights than pixels, colors are mixed, so that they show the share of zeros.

    Args:
      x: a real floating-point array of rank >= 1.
      group_axis: the axis or axes whose indices count groups, as in `jaxreg.GroupLasso`. By default they are the units
        of a Dense kernel and the filters of a convolution.
      batch_axis: further axes that count groups, such as that of stacked layers. Lines divide the matrices.
      ax: the matplotlib `Axes` to draw into.

    Returns:
      The `Axes`.

    Raises:
      TypeError, ValueError: `x` is not an array of floats, has no weights, or an axis does not fit it.
      ImportError: matplotlib is not installed.

    >>> ax = jaxreg.plots.sparsity_pattern(jnp.array([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]]))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['not zero: 3 weights', 'zero: 1 weight', 'zero in 1 dead group of 3: 2 weights']
    """
    values = with_values(x)
    if not values.ndim or not values.size:
        raise ValueError(f"`x` must have rank >= 1 and at least one weight, got {describe(values)}")
    groups = positive_axes(group_axis, values.ndim, name="group_axis")
    batch = positive_axes(batch_axis, values.ndim, name="batch_axis")
    check_disjoint(groups, batch, values, name="group_axis")
    inside = [axis for axis in range(values.ndim) if axis not in groups + batch]
    matrices = math.prod(values.shape[axis] for axis in batch)
    members = math.prod(values.shape[axis] for axis in inside)
    flat = values.transpose([*inside, *batch, *groups]).reshape(members, -1)

    zero = flat == 0
    dead = zero.all(axis=0)
    kinds = np.where(np.isfinite(flat), zero.astype(np.int8), np.int8(3))
    kinds[:, dead] = 2
    counts = [int((kinds == kind).sum()) for kind in range(4)]
    of_groups = f"zero in {number(dead.sum(), 'dead group')} of {dead.size:,}"
    names = ("not zero", "zero", of_groups, "NaN or infinite")
    colors = (BLUE, "#FFFFFF", ORANGE, "#000000")

    ax = drawable(ax)
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    # Colors, and not numbers, are averaged where several weights share a pixel.
    palette = np.array([[round(255 * part) for part in to_rgb(color)] for color in colors], np.uint8)
    box = ax.get_window_extent()
    has_pixels = members <= box.height and dead.size <= box.width
    ax.imshow(palette[kinds], aspect="auto", interpolation="nearest" if has_pixels else "antialiased")
    if matrices > 1:
        for edge in range(1, matrices):
            ax.axvline(edge * dead.size / matrices - 0.5, color="black", linewidth=0.8)
    # A column of many may be narrower than a pixel, and a triangle is not.
    ax.plot(
        np.flatnonzero(dead),
        np.full(dead.sum(), 1.015),
        "v",
        color=VERMILLION,
        markersize=4,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
    )
    shown = [kind for kind in range(4) if counts[kind] or kind < 2]
    handles = [Patch(facecolor=colors[kind], edgecolor="black", linewidth=0.5) for kind in shown]
    texts = [f"{names[kind]}: {number(counts[kind], 'weight')}" for kind in shown]
    legend(ax, handles, texts, place="below")
    of = "" if matrices == 1 else f", in {matrices} matrices"
    ax.set(xlabel=f"group (index{of})", ylabel="weight of a group (index)")
    whole_ticks(ax, "xy")
    return ax


@public
def accuracy_against_sparsity(
    sparsity: Any, accuracy: Any, *, labels: Sequence[str] | None = None, ax: "Plot | None" = None
) -> "Plot":
    """Draws the accuracy of networks against the share of their weights that is exactly zero.

    Args:
      sparsity: the shares, from 0 to 1, for the points of the curve: an array `(points,)`, or `(points, seeds)`. For
        several curves, a list of such arrays, one for each label.
      accuracy: the accuracies, from 0 to 1, in the same shape. NaN leaves a gap. With several seeds, a curve goes
        through their means, a band from the lowest to the highest accuracy of them, and dots show each of them.
      labels: the names of several curves, or None for one curve.
      ax: the matplotlib `Axes` to draw into.

    Returns:
      The `Axes`.

    Raises:
      TypeError, ValueError: `sparsity` or `accuracy` are not numbers from 0 to 1, have other shapes, or are not as many
        as `labels`.
      ImportError: matplotlib is not installed.

    >>> shares, accuracies = np.array([0.0, 0.5, 0.9]), np.array([0.97, 0.97, 0.93])
    >>> ax = jaxreg.plots.accuracy_against_sparsity(shares, accuracies)
    >>> ax.get_xlabel()
    'weights that are exactly zero (%)'
    """
    curves = _curves(sparsity, accuracy, labels)
    is_beside = ax is None and len(curves) > len(COLORS)

    ax = drawable(ax, inches(labels or []) if is_beside else None)
    from matplotlib import colormaps
    from matplotlib.ticker import PercentFormatter

    lines = []
    for place, (shares, accuracies) in enumerate(curves):
        color: Any = COLORS[place % len(COLORS)]
        style = ("-", "--", ":", "-.")[place // len(COLORS) % 4]
        if len(curves) > 4 * len(COLORS):
            color, style = colormaps["cividis"](place / (len(curves) - 1)), "-"
        order = np.argsort(shares.mean(axis=1), kind="stable")
        shares, accuracies = shares[order], accuracies[order]
        across, up = shares.mean(axis=1), accuracies.mean(axis=1)
        if shares.shape[1] > 1:
            low, high = accuracies.min(axis=1), accuracies.max(axis=1)
            ax.fill_between(across, low, high, color=color, alpha=0.2, linewidth=0)
            ax.plot(shares.ravel(), accuracies.ravel(), ".", color=color, alpha=0.5, markersize=4)
        marker = "o" if len(across) <= 30 else ""
        lines += ax.plot(across, up, style, color=color, marker=marker, markersize=4, linewidth=1.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set(xlabel="weights that are exactly zero (%)", ylabel="accuracy (%)")
    if labels is not None:
        legend(ax, lines, list(labels), place="beside" if is_beside else "inside")
    return ax


def _curves(sparsity: Any, accuracy: Any, labels: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the curves as pairs of arrays (points, seeds)."""
    if labels is None:
        return [_curve(sparsity, accuracy, "")]
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(name, str) for name in labels):
        raise TypeError(f"`labels` must be a list of names or None, got {describe(labels)}")
    for name, values in (("sparsity", sparsity), ("accuracy", accuracy)):
        if not isinstance(values, list | tuple) or len(values) != len(labels):
            raise ValueError(
                f"`{name}` must be a list of {len(labels)} arrays, one for each of `labels`, got {_count(values)}"
            )
    if not labels:
        raise ValueError("`labels` must hold at least one name, got none")
    return [_curve(s, a, f" of {name!r}") for s, a, name in zip(sparsity, accuracy, labels, strict=True)]


def _count(values: Any) -> str:
    return f"{len(values)} in a {type(values).__name__}" if isinstance(values, list | tuple) else describe(values)


def _curve(sparsity: Any, accuracy: Any, whose: str) -> tuple[np.ndarray, np.ndarray]:
    shares = _from_0_to_1(sparsity, f"`sparsity`{whose}", has_nan=False)
    accuracies = _from_0_to_1(accuracy, f"`accuracy`{whose}", has_nan=True)
    if shares.shape != accuracies.shape:
        raise ValueError(f"`accuracy`{whose} must have the shape of `sparsity`, {shares.shape}, got {accuracies.shape}")
    return (shares[:, None], accuracies[:, None]) if shares.ndim == 1 else (shares, accuracies)


def _from_0_to_1(values: Any, name: str, *, has_nan: bool) -> np.ndarray:
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {describe(values)}") from error
    if found.ndim not in (1, 2) or not found.size:
        raise ValueError(f"{name} must have the shape (points,) or (points, seeds), got {found.shape}")
    if not np.all((found >= 0) & (found <= 1) | (has_nan & np.isnan(found))):
        got = "NaN" if np.isnan(found).any() else f"{found.min():.6g} to {found.max():.6g}"
        raise ValueError(f"{name} must lie between 0 and 1, got {got}")
    return found
