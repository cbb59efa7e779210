"""Pictures of trees of parameters, with the rules that met them."""

import math
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxreg._checks import describe
from jaxreg._matching import shown
from jaxreg._names import public
from jaxreg._paths import is_masked, leaves_with_paths
from jaxreg._rules import Rules
from jaxreg.plots._axes import COLORS, GREY, drawable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot

# A character of a monospaced font is so wide, and a line of the tree so high, in multiples of the size of the font.
_WIDE, _HIGH, _LETTER = 0.602, 1.5, 9.0


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
        shrink until it fits.

    Returns:
      The `Axes`, with frame and ticks hidden.

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
        does = "left alone" if regularizer is None else shortened(repr(regularizer), 60)
        lines.append(_Line(0, shortened(shown(pattern), 60), _Leaf(does, rule)))
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
            yield _Line(depth, shortened(shown, 60), node.leaf)
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
        ax = drawable(None, inches)
    else:
        ax = drawable(ax)
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
            ax.plot([x, x, x + 1.2], [top, place, place], color=GREY, linewidth=size / 15)
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
        return {"marker": "." if leaf.array == "masked" else "o", "color": GREY, "markerfacecolor": "none"}
    if is_left:
        return {"marker": "x", "color": "#555555"}
    marker = ("s", "o", "^", "D")[leaf.rule // len(COLORS) % 4]
    return {"marker": marker, "color": COLORS[leaf.rule % len(COLORS)]}


def _runs(numbers: list[str]) -> str:
    """Returns numbers in order, with a range for those that follow each other: "0-3, 5"."""
    runs: list[list[str]] = []
    for number in sorted(numbers, key=int):
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
