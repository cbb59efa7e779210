"""Pictures of weights, penalties and rules, drawn by matplotlib.

matplotlib is optional: `pip install "jaxreg[plots]"`. It is imported when the first picture is drawn.

Each function draws into `ax`, or into a new figure that is large enough, and returns the `Axes`. Save the picture by
`ax.figure.savefig("picture.png")`. Axes of your own need a figure with `layout="constrained"`, so that legends have
room. No function calls `plt.show`, or changes a setting of matplotlib. Colors are those of Okabe and Ito, or a map that
color-blind readers can tell apart too.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxreg._checks import checked_count, describe, is_float_array
from jaxreg._matching import name_of
from jaxreg._matrix import Axes, Mode, View, as_tuple, as_vectors, check_disjoint, checked_axes, positive_axes
from jaxreg._names import public
from jaxreg._numerics import as_floats
from jaxreg._paths import check_no_optimizer_state, is_masked, leaves_with_paths
from jaxreg._rules import Rules
from jaxreg.diagnostics import History, cosines

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot

Place = Literal["inside", "beside", "below"]  # of a legend

# Okabe and Ito's colors without black, in an order in which neighbors differ most.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
_BLUE, _ORANGE, _VERMILLION = "#0072B2", "#E69F00", "#D55E00"
_GREY, _PALE = "#999999", "#DDDDDD"

# A character of a monospaced font is so wide, and a line of the tree so high, in multiples of the size of the font.
_WIDE, _HIGH, _LETTER = 0.602, 1.5, 9.0


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
    that pictures with the same scale can be compared. The diagonal may lie beyond it. It is white for a zero row. NaN
    is grey.

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

    ax = _drawable(ax)
    from matplotlib import colormaps

    colors = colormaps["RdBu_r"].with_extremes(bad=_GREY)
    image = ax.imshow(gram, cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="cosine", extend="neither" if limit == 1 else "max")
    ax.set(xlabel=f"{mode[:-1]} (index)", ylabel=f"{mode[:-1]} (index)")
    _whole_ticks(ax, "xy")
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
    title = [f"{_number(shown.size, 'pair')} of {mode}" if n > 1 else f"a single {mode[:-1]} has no pairs"]
    if has_zero.any():
        title.append(f"left out: {_number(has_zero.sum(), 'pair')} with a zero {mode[:-1]}")
    if (is_nan & ~has_zero).any():
        title.append(f"left out: {_number((is_nan & ~has_zero).sum(), 'pair')} with NaN")
    n = int((own > 0).sum(axis=1).max())
    welch = math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0
    limit = _limit(np.append(np.abs(shown), welch))

    ax = _drawable(ax)
    # Rounding may take a cosine beyond 1, and a bar outside of the scale is not drawn. Of 51 bins, one is around 0.
    ax.hist(np.clip(shown, -limit, limit), bins=51, range=(-limit, limit), color=_BLUE)
    style: dict[str, Any] = {"color": _VERMILLION, "linestyle": "--", "linewidth": 1.5}
    if welch:
        line = ax.axvline(welch, **style)
        ax.axvline(-welch, **style)
    else:
        line = ax.axvline(0.0, **style)
    _legend(ax, [line], [f"Welch bound ±{welch:.3g}" if welch else "orthogonal"])
    ax.set(xlabel=f"cosine of two {mode}", ylabel="number of pairs", xlim=(-limit, limit))
    ax.set_ylim(0, None if shown.size else 1)
    _whole_ticks(ax, "y")
    ax.set_title("\n".join(title), fontsize="medium")
    return ax


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
    spectra = _spectra(tree, out_axis, batch_axis)
    known = np.concatenate([many.ravel() for many in spectra.values()])
    known = known[np.isfinite(known)]
    positive, longest = known[known > 0], max(many.shape[1] for many in spectra.values())
    missing = {path: int(np.isnan(many).any(axis=1).sum()) for path, many in spectra.items()}
    labels = [_label_of_spectra(path, len(many), missing[path]) for path, many in spectra.items()]
    has_legend = len(spectra) <= 2 * len(_COLORS)

    is_own = ax is None
    ax = _drawable(ax, _inches(labels if has_legend else []))
    from matplotlib import colormaps

    lines, every = [], []
    for place, (path, many) in enumerate(spectra.items()):
        color: Any = _COLORS[place % len(_COLORS)]
        style, width = "-" if place < len(_COLORS) else "--", 1.3
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
        ax.axhline(10.0 ** decades[0], color=_GREY, linestyle=":", linewidth=1)
        for line in every:
            line.set_clip_on(False)  # points at 0 would be cut in half
        words += ", log above the dotted line"
    else:
        ax.set_yscale("log")
    ax.set_xlim(0.5, longest + 0.5)
    _whole_ticks(ax, "x")
    ax.set(xlabel="number of the singular value, from the largest", ylabel=words)
    if has_legend:
        _legend(ax, lines, labels, place="beside" if is_own and len(labels) > 1 else "inside")
    else:
        _bar_of_paths(ax, list(spectra), missing=sum(map(bool, missing.values())))
    return ax


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
    values = _values(x)
    if not values.ndim or not values.size:
        raise ValueError(f"`x` must have rank >= 1 and at least one weight, got {describe(values)}")
    groups = positive_axes(group_axis, values.ndim, name="group_axis")
    batch = positive_axes(batch_axis, values.ndim, name="batch_axis")
    check_disjoint(groups, batch, as_floats(x), name="group_axis")
    inside = [axis for axis in range(values.ndim) if axis not in groups + batch]
    matrices = math.prod(values.shape[axis] for axis in batch)
    members = math.prod(values.shape[axis] for axis in inside)
    flat = values.transpose([*inside, *batch, *groups]).reshape(members, -1)

    zero = flat == 0
    dead = zero.all(axis=0)
    kinds = np.where(np.isfinite(flat), zero.astype(np.int8), np.int8(3))
    kinds[:, dead] = 2
    counts = [int((kinds == kind).sum()) for kind in range(4)]
    of_groups = f"zero in {_number(dead.sum(), 'dead group')} of {dead.size:,}"
    names = ("not zero", "zero", of_groups, "NaN or infinite")
    colors = (_BLUE, "#FFFFFF", _ORANGE, "#000000")

    ax = _drawable(ax)
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
        color=_VERMILLION,
        markersize=4,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
    )
    shown = [kind for kind in range(4) if counts[kind] or kind < 2]
    handles = [Patch(facecolor=colors[kind], edgecolor="black", linewidth=0.5) for kind in shown]
    texts = [f"{names[kind]}: {_number(counts[kind], 'weight')}" for kind in shown]
    _legend(ax, handles, texts, place="below")
    of = "" if matrices == 1 else f", in {matrices} matrices"
    ax.set(xlabel=f"group (index{of})", ylabel="weight of a group (index)")
    _whole_ticks(ax, "xy")
    return ax


@public
def penalty_history(history: History, *, by: Literal["rule", "path"] = "rule", ax: "Plot | None" = None) -> "Plot":
    """Draws the penalties of a `jaxreg.diagnostics.History` over the steps, as areas that add up to the whole.

    The seven largest have a color each, in the order of the rules or of the tree, and the others are one grey area. A
    parameter that a row does not have counts as 0 there. Steps with a penalty that is NaN or infinite have no areas,
    and a mark.

    Args:
      history: a history that was made with rules.
      by: "rule", or "path" for one area for each parameter.
      ax: the matplotlib `Axes` to draw into.

    Returns:
      The `Axes`.

    Raises:
      TypeError: `history` is no `jaxreg.diagnostics.History`.
      ValueError: `by` is another word, or `history` has no penalties of parameters.
      ImportError: matplotlib is not installed.

    >>> history = jaxreg.diagnostics.History(jaxreg.Rules((r"kernel$", jaxreg.L2(0.5)), (r"bias$", jaxreg.L1(0.1))))
    >>> history.record(0, {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])})
    >>> history.record(9, {"kernel": jnp.array([1.0, -1.0]), "bias": jnp.array([2.0])})
    >>> ax = jaxreg.plots.penalty_history(history)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['bias$', 'kernel$']
    """
    if not isinstance(history, History):
        raise TypeError(f"`history` must be a jaxreg.diagnostics.History, got {describe(history)}")
    if by not in ("rule", "path"):
        raise ValueError(f"`by` must be 'rule' or 'path', got {by!r}")
    rows = [row for row in history.rows if "penalty/total" in row]
    prefix = f"penalty/{by}"
    names = list(dict.fromkeys(name for row in rows for name in row if name.split("/")[:2] == prefix.split("/")))
    if not names:
        raise ValueError("`history` must have penalties of parameters, from History(rules) and record(step, params)")
    steps = np.array([row["step"] for row in rows], float)
    table = np.array([[row.get(name, 0.0) for row in rows] for name in names], float)
    finite = np.isfinite(table).all(axis=0)
    labels = [name[len(prefix) + 1 :] or "the array" for name in names]
    table, labels = _largest_and_rest(np.where(finite, table, np.nan), labels, len(_COLORS))

    is_own = ax is None
    ax = _drawable(ax, _inches(labels))
    tops = np.cumsum(table, axis=0)
    if len(steps) == 1:  # an area needs a width
        steps, tops, finite = steps + np.array([-0.5, 0.5]), np.repeat(tops, 2, axis=1), np.repeat(finite, 2)
    marker = "" if finite.all() else "."  # a step between two without areas has nothing else
    handles: list[Any] = []
    for place, top in enumerate(tops):
        color = _COLORS[place] if place < len(_COLORS) else _GREY
        bottom = tops[place - 1] if place else np.zeros_like(top)
        handles.append(ax.fill_between(steps, bottom, top, where=finite, color=color, linewidth=0))
        # A thin area shows by its edge.
        ax.plot(steps, top, color="black", linewidth=0.5, marker=marker, markersize=2)
    handles, labels = handles[::-1], labels[::-1]  # as they lie on each other
    if not finite.all():
        style: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "x", "clip_on": False}
        handles += ax.plot(steps[~finite], np.zeros((~finite).sum()), transform=ax.get_xaxis_transform(), **style)
        labels.append("NaN or infinite")
    ax.set(xlabel="step", ylabel="penalty", ylim=(0, None if np.nanmax([*tops[-1][finite], 0.0]) > 0 else 1))
    ax.margins(x=0)
    _whole_ticks(ax, "x")
    _legend(ax, handles, labels, place="beside" if is_own else "inside")
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
    is_beside = ax is None and len(curves) > len(_COLORS)

    ax = _drawable(ax, _inches(labels or []) if is_beside else None)
    from matplotlib import colormaps
    from matplotlib.ticker import PercentFormatter

    lines = []
    for place, (shares, accuracies) in enumerate(curves):
        color: Any = _COLORS[place % len(_COLORS)]
        style = ("-", "--", ":", "-.")[place // len(_COLORS) % 4]
        if len(curves) > 4 * len(_COLORS):
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
    ax.grid(color=_PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set(xlabel="weights that are exactly zero (%)", ylabel="accuracy (%)")
    if labels is not None:
        _legend(ax, lines, list(labels), place="beside" if is_beside else "inside")
    return ax


@public
def matched_tree(rules: Rules, tree: Any, *, ax: "Plot | None" = None) -> "Plot":
    """Draws the tree of parameters, each with the color of the rule that met it.

    A filled mark is a rule with a regularizer or a constraint. A cross is a parameter that a rule leaves alone, and an
    empty circle one that no rule matches. Siblings that differ by a number alone, such as equal layers, are one line:
    `Block_[0-11]`. No penalty is computed, so a tree from `jax.eval_shape` will do.

    Args:
      rules: the rules.
      tree: a tree of parameters that they take.
      ax: the matplotlib `Axes` to draw into. A new figure is as large as the tree needs. In `Axes` of your own, letters
        are as small as it takes.

    Returns:
      The `Axes`, without axes.

    Raises:
      TypeError: `rules` are no `jaxreg.Rules`.
      ValueError: `tree` has no parameters, or the rules do not fit it.
      ImportError: matplotlib is not installed.

    >>> params = {"Dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
    >>> ax = jaxreg.plots.matched_tree(jaxreg.Rules((r"head/", None), (r"kernel$", jaxreg.L2())), params)
    >>> [text.get_text() for text in ax.texts if "rule" in text.get_text()]
    ['rule 0', 'rule 1', 'no rule', 'rule 1', 'rule 0']
    """
    if not isinstance(rules, Rules):
        raise TypeError(f"`rules` must be jaxreg.Rules, got {describe(rules)}")
    rule_of = rules.matches(tree)
    root = _Node("")
    for path, leaf in leaves_with_paths(tree):
        if path in rule_of or is_masked(leaf):
            keys = path.split("/") if path else ["the array"]
            root.add(keys, _Leaf("masked", None) if is_masked(leaf) else _Leaf(describe(leaf), rule_of[path]))
    if not root.children:
        raise ValueError("`tree` must hold parameters, which are floating-point arrays, got none")
    lines = []
    for rule, (pattern, regularizer) in enumerate(zip(rules.patterns, rules.regularizers, strict=True)):
        name = pattern if isinstance(pattern, str) and pattern else name_of(pattern)
        does = "left alone" if regularizer is None else _shortened(repr(regularizer), 60)
        lines.append(_Line(0, _shortened(name, 60), _Leaf(does, rule)))
    left_alone = {rule for rule, regularizer in enumerate(rules.regularizers) if regularizer is None}
    return _draw_lines([lines, list(root.lines())], left_alone, ax)


class _Leaf(NamedTuple):
    """A parameter in a picture of a tree: its dtype and shape, and the index of its rule."""

    array: str
    rule: int | None


class _Line(NamedTuple):
    """A line in a picture of a tree: its depth, its name, and the parameter that it is, if it is one."""

    depth: int
    name: str
    leaf: _Leaf | None

    @property
    def start(self) -> int:
        """The place at which its name begins. A parameter has its mark before it."""
        return 2 * self.depth + (0 if self.leaf is None else 2)

    @property
    def rule(self) -> str:
        """The words for its rule."""
        if self.leaf is None or self.leaf.array == "masked":
            return ""
        return "no rule" if self.leaf.rule is None else f"rule {self.leaf.rule}"


class _Node:
    """A part of a tree, with the parts below it by name."""

    def __init__(self, name: str, leaf: _Leaf | None = None):
        self.name, self.leaf = name, leaf
        self.children: dict[str, _Node] = {}

    def add(self, keys: list[str], leaf: _Leaf) -> None:
        """Adds a parameter below this part."""
        node = self
        for key in keys:
            node = node.children.setdefault(key, _Node(key))
        node.leaf = leaf

    def kind(self) -> Any:
        """Returns what parts have in common that differ in nothing but their names."""
        return self.leaf, tuple((child.name, child.kind()) for child in self.children.values())

    def lines(self, depth: int = 0) -> Iterable[_Line]:
        """Returns the lines of the parts below this one, with one line for parts that differ by a number alone."""
        together: dict[Any, list[_Node]] = {}
        for child in self.children.values():
            numbered = re.fullmatch(r"(.*?)(\d+)(\D*)", child.name, re.DOTALL)
            name = (numbered[1], numbered[3]) if numbered else child.name
            together.setdefault((name, child.kind()), []).append(child)
        for (name, _), nodes in together.items():
            node, shown = nodes[0], nodes[0].name
            if len(nodes) > 1:
                before, after = name
                numbers = [child.name.removeprefix(before).removesuffix(after) for child in nodes]
                shown = f"{before}[{_runs(numbers)}]{after}"
            # A part with a single part below it is one line with it.
            while node.leaf is None and len(node.children) == 1:
                (node,) = node.children.values()
                shown = f"{shown}/{node.name}"
            yield _Line(depth, _shortened(shown, 60), node.leaf)
            yield from node.lines(depth + 1)


def _draw_lines(blocks: list[list[_Line]], left_alone: Collection[int], ax: Any) -> "Plot":
    """Draws blocks of lines below each other, in as many columns as let the letters be large."""
    lines: list[tuple[_Line, int, int]] = []  # with the places of what a parameter is and of its rule
    width = 0
    for block in blocks:
        second = max(line.start + len(line.name) for line in block) + 3
        third = second + max(len(line.leaf.array) if line.leaf else 0 for line in block) + 3
        width = max(width, third + max(len(line.rule) for line in block) + 3)
        lines += [(_Line(0, "", None), 0, 0)] if lines else []
        lines += [(line, second, third) for line in block]

    def size_of(columns: int, box: tuple[float, float]) -> float:
        """Returns the size of letters in a box, which is given in points."""
        return min(box[0] / (columns * width * _WIDE), box[1] / (math.ceil(len(lines) / columns) * _HIGH))

    if ax is None:
        columns, size = math.ceil(len(lines) / 60), _LETTER
        height = math.ceil(len(lines) / columns)
        inches = (columns * width * _WIDE * size / 72 + 0.2, height * _HIGH * size / 72 + 0.2)
        ax = _drawable(None, inches)
    else:
        ax = _drawable(ax)
        extent, dots = ax.get_window_extent(), ax.figure.dpi / 72
        box = (extent.width / dots, extent.height / dots)
        columns = max(range(1, 9), key=lambda columns: size_of(columns, box))
        size = min(_LETTER, size_of(columns, box))
        height = math.ceil(len(lines) / columns)
    ax.set(xlim=(0, columns * width), ylim=(height - 0.5, -0.5))
    ax.axis("off")

    style: dict[str, Any] = {"family": "monospace", "size": size, "va": "center", "parse_math": False, "usetex": False}
    above: dict[int, int] = {}  # the last line at each depth
    for number, (line, second, third) in enumerate(lines):
        column, place = divmod(number, height)
        left = column * width
        if line.depth:
            x, top = left + 2 * line.depth - 1.5, max(above[line.depth - 1] - column * height + 0.5, -0.5)
            ax.plot([x, x, x + 1.2], [top, place, place], color=_GREY, linewidth=size / 15)
        above[line.depth] = number
        ax.text(left + line.start, place, line.name, **style)
        if line.leaf is not None:
            mark = _mark(line.leaf, is_left=line.leaf.rule in left_alone)
            ax.plot(left + line.start - 1.2, place, **mark, markersize=0.7 * size, clip_on=False)
            ax.text(left + second, place, line.leaf.array, color="#555555", **style)
            ax.text(left + third, place, line.rule, color="#555555", **style)
    return ax


def _mark(leaf: _Leaf, *, is_left: bool) -> dict[str, Any]:
    """Returns the mark of a parameter: one for each rule, a cross where it is left alone, and a circle for no rule."""
    if leaf.rule is None:
        return {"marker": "." if leaf.array == "masked" else "o", "color": _GREY, "markerfacecolor": "none"}
    if is_left:
        return {"marker": "x", "color": "#555555"}
    marker = ("s", "o", "^", "D")[leaf.rule // len(_COLORS) % 4]
    return {"marker": marker, "color": _COLORS[leaf.rule % len(_COLORS)]}


def _runs(numbers: list[str]) -> str:
    """Returns numbers in order, with a range for those that follow each other: "0-3, 5"."""
    runs: list[list[str]] = []
    for number in sorted(numbers, key=int):
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _drawable(ax: Any, inches: tuple[float, float] | None = None) -> "Plot":
    """Returns the axes to draw into: those that were given, or those of a new figure."""
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes as Plot
    except ImportError as error:
        raise ImportError('`jaxreg.plots` needs matplotlib: pip install "jaxreg[plots]"') from error
    if ax is None:
        return pyplot.subplots(figsize=inches, layout="constrained")[1]
    if not isinstance(ax, Plot):
        raise TypeError(f"`ax` must be a matplotlib Axes or None, got {describe(ax)}")
    return ax


def _label_of_spectra(path: str, count: int, missing: int) -> str:
    """Returns the name of a kernel in a legend, with the number of its matrices and of those that are not finite."""
    notes = [] if count == 1 else [f"{count} matrices"]
    if missing:
        notes.append("NaN or infinite" if missing == count else f"{missing} NaN or infinite")
    return (path or "the array") + (f" ({', '.join(notes)})" if notes else "")


def _inches(labels: Sequence[str]) -> tuple[float, float]:
    """Returns the size of a figure that has room for a legend beside its axes."""
    names = _names_in_legend(labels)
    return 6.4 + 0.08 * max(map(len, names), default=0), max(4.8, 0.2 * len(names))


def _names_in_legend(labels: Sequence[str]) -> list[str]:
    """Returns labels that are short, without what they all end with if they would be equal otherwise."""
    short = [_shortened(label, 56) for label in labels]
    if len(set(short)) == len(set(labels)):
        return short
    keys = [label.split("/") for label in labels]
    from_the_end = zip(*(parts[::-1] for parts in keys), strict=False)
    shared = next((count for count, parts in enumerate(from_the_end) if len(set(parts)) > 1), 0)
    return ["/".join([*parts[: len(parts) - shared], *["…"] * bool(shared)]) for parts in keys]


def _legend(ax: "Plot", handles: Sequence[Any], labels: Sequence[str], *, place: Place = "inside") -> None:
    """Adds a legend whose labels are shown as they are. matplotlib would take `$` for mathematics, and hide `_`."""
    places: dict[str, dict[str, Any]] = {
        "inside": {"loc": "best"},
        "beside": {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.5},
        "below": {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.5},
    }
    legend = ax.legend(handles, [str(number) for number in range(len(labels))], fontsize="small", **places[place])
    for text, name in zip(legend.get_texts(), _names_in_legend(labels), strict=True):
        text.set(parse_math=False, usetex=False, text=name)


def _shortened(text: str, most: int) -> str:
    """Returns a text of at most so many letters. Those in its middle are left out, since paths differ at their ends."""
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) - (most - most // 3 - 1) :]}"


def _number(count: Any, of: str) -> str:
    """Returns a number of things, such as "1 pair" or "2,000 pairs"."""
    return f"{count:,} {of}{'s' * int(count != 1)}"


def _whole_ticks(ax: "Plot", which: str) -> None:
    """Lets the ticks of a linear axis stand at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    for letter in which:
        (ax.xaxis if letter == "x" else ax.yaxis).set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _bar_of_paths(ax: "Plot", paths: list[str], missing: int) -> None:
    """Adds a color bar in place of a legend, from the first path to the last."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    last = len(paths) - 1
    bar = ax.figure.colorbar(ScalarMappable(Normalize(0, last), colormaps["cividis"]), ax=ax)
    texts = [_shortened(path, 30) for path in (paths[0], paths[last // 2], paths[-1])]
    bar.set_ticks([0, last // 2, last], labels=texts)
    for text in bar.ax.get_yticklabels():
        text.set(parse_math=False, usetex=False, fontsize="small")
    bar.set_label(f"path, of {len(paths)}" + (f" ({missing} with NaN or infinity)" if missing else ""))


def _values(x: Any) -> np.ndarray:
    """Returns an array of floats as one of NumPy, in its own dtype."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"`x` must have values, got traced {describe(x)}: draw outside of `jax.jit`")
    return np.asarray(as_floats(x))


def _grams(x: ArrayLike, mode: Mode, out_axis: Axes, batch_axis: Axes) -> np.ndarray:
    """Returns the cosines of all matrices, as an array (matrices, n, n)."""
    _values(x)
    grams = np.asarray(cosines(x, mode=mode, out_axis=out_axis, batch_axis=batch_axis))
    if not grams.size:
        raise ValueError(f"`x` must hold at least one of the {mode}, got {describe(x)}")
    return grams.reshape(-1, *grams.shape[-2:])


def _largest(sizes: np.ndarray) -> float:
    """Returns the largest of sizes, NaN aside."""
    return float(np.max(sizes, initial=0.0, where=~np.isnan(sizes)))


def _limit(sizes: np.ndarray) -> float:
    """Returns where a scale of cosines ends, so that it holds all these sizes."""
    return next((limit for limit in (0.1, 0.2, 0.5) if _largest(sizes) <= limit), 1.0)


def _spectra(tree: Any, out_axis: Axes, batch_axis: Axes) -> dict[str, np.ndarray]:
    """Returns the singular values of all kernels by path, as arrays (matrices, values), NaN where one is not finite."""
    check_no_optimizer_state(tree)
    stacked = len(as_tuple(checked_axes(batch_axis, name="batch_axis")))
    checked_axes(out_axis, name="out_axis")
    leaves = leaves_with_paths(tree)
    is_array = [path for path, _ in leaves] == [""]
    if is_array:
        leaves = [("", tree if isinstance(tree, jax.core.Tracer | jax.ShapeDtypeStruct) else as_floats(tree))]
    spectra = {}
    for path, leaf in leaves:
        if not is_float_array(leaf) or (leaf.ndim < stacked + 2 and not is_array):
            continue
        where = f" at `{path}`" if path else ""
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise TypeError(f"`tree` must hold values, got {describe(leaf)} without any{where}")
        if not leaf.size:
            raise ValueError(f"`tree` must hold no empty arrays, got {describe(leaf)}{where}")
        try:
            wide: Any = np.asarray(leaf).astype(np.float64)  # also where JAX has no float64
            matrices, layout = as_vectors(wide, View("rows", out_axis, batch_axis))
        except (TypeError, ValueError) as error:
            raise type(error)(f"at `{path}`: {error}" if path else str(error)) from error
        spectra[path] = np.stack([_spectrum(matrix) for matrix in np.moveaxis(np.asarray(matrices), layout.batch, 0)])
    if not spectra:
        raise ValueError(f"`tree` must hold a floating-point array of rank >= {stacked + 2}, got none")
    return spectra


def _spectrum(matrix: np.ndarray) -> np.ndarray:
    """Returns the singular values of a matrix, with 0 for those that are rounding."""
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    values = np.linalg.svd(matrix, compute_uv=False)
    return np.where(values > max(matrix.shape) * np.finfo(np.float64).eps * values[0], values, 0.0)


def _largest_and_rest(table: np.ndarray, labels: list[str], most: int) -> tuple[np.ndarray, list[str]]:
    """Returns the rows with the largest sums, in their order, and the sum of the other rows as one more."""
    if len(labels) <= most + 1:
        return table, labels
    ranked = np.argsort(-np.nansum(table, axis=1), kind="stable")
    kept, rest = sorted(ranked[:most]), ranked[most:]
    return np.vstack([table[kept], table[rest].sum(axis=0)]), [*(labels[i] for i in kept), f"{len(rest)} others"]


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
        raise ValueError(f"{name} must lie between 0 and 1, got {np.nanmin(found):.6g} to {np.nanmax(found):.6g}")
    return found
