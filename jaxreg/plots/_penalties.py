"""Pictures of penalties during training."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxreg._checks import describe
from jaxreg._names import public
from jaxreg.diagnostics import History
from jaxreg.plots._axes import COLORS, GREY, drawable, inches, legend, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot


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
      ValueError: `by` is another word, or `history` has no penalties of parameters, or negative ones.
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
    if (table[:, finite] < 0).any():
        raise ValueError(f"`history` must have penalties >= 0, which can be stacked, got {table[:, finite].min():.6g}")
    labels = [name[len(prefix) + 1 :] or "the array" for name in names]
    table, labels = _largest_and_rest(np.where(finite, table, np.nan), labels, len(COLORS))

    is_own = ax is None
    ax = drawable(ax, inches(labels))
    tops = np.cumsum(table, axis=0)
    if len(steps) == 1:  # an area needs a width
        steps, tops, finite = steps + np.array([-0.5, 0.5]), np.repeat(tops, 2, axis=1), np.repeat(finite, 2)
    marker = "" if finite.all() else "."  # a step between two without areas has nothing else
    handles: list[Any] = []
    for place, top in enumerate(tops):
        color = COLORS[place] if place < len(COLORS) else GREY
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
    whole_ticks(ax, "x")
    legend(ax, handles, labels, place="beside" if is_own else "inside")
    return ax


def _largest_and_rest(table: np.ndarray, labels: list[str], most: int) -> tuple[np.ndarray, list[str]]:
    """Returns the rows with the largest sums, in their order, and the sum of the other rows as one more."""
    if len(labels) <= most + 1:
        return table, labels
    ranked = np.argsort(-np.nansum(table, axis=1), kind="stable")
    kept, rest = sorted(ranked[:most]), ranked[most:]
    return np.vstack([table[kept], table[rest].sum(axis=0)]), [*(labels[i] for i in kept), f"{len(rest)} others"]
