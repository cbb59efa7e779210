"""Tables of which rule met which parameter."""

import math
from typing import NamedTuple

from rich.table import Table

from jaxreg._tables import Tables, add_row, table

_RIGHT = ("arrays", "size", "distance", "penalty", "share")


class Row(NamedTuple):
    """One parameter.

    Attributes:
      path: its path in the tree.
      array: its dtype and shape.
      size: the number of its values.
      patterns: the indices of the rules whose patterns match it, the first of which has it.
      penalty: a number where values exist, else None.
      seen: what its regularizer sees in it, such as "64 groups of 64".
      names: its further paths, where modules of NNX share it.
      distance: its distance from the set of its constraint, where values exist, else None.
    """

    path: str
    array: str
    size: int
    patterns: tuple[int, ...]
    penalty: float | None
    seen: str = ""
    names: tuple[str, ...] = ()
    distance: float | None = None


class Explanation(Tables):
    """The tables that `Rules.explain` returns. `str` gives them as plain text, and `rows` are the lines as data."""

    def __init__(self, rows: tuple[Row, ...], rules: tuple[tuple[str, str], ...]):
        self.rows = rows
        self._rules = rules  # pattern and regularizer of each, as text
        self._total = sum(row.penalty or 0.0 for row in rows)
        # Shapes alone, and traced arrays, have no penalty to show.
        self._columns = ("penalty", "share") if any(row.penalty is not None for row in rows) else ()

    def _cost(self, rows: list[Row]) -> tuple[str, ...]:
        """Returns the penalty of some rows and its share of the whole, or blanks where they have none."""
        known = [row.penalty for row in rows if row.penalty is not None]
        if not self._columns or not known:
            return ("",) * len(self._columns)
        has_share = self._total and math.isfinite(self._total)
        return f"{sum(known):.6g}", f"{sum(known) / self._total:.1%}" if has_share else "-"

    def _parameters(self) -> Table:
        # Most trees have nothing to show in these columns.
        further = {
            "seen as": [row.seen for row in self.rows],
            "shared with": [", ".join(row.names) for row in self.rows],
            "distance": ["" if row.distance is None else f"{row.distance:.6g}" for row in self.rows],
        }
        further = {column: cells for column, cells in further.items() if any(cells)}
        made = table("path", "array", "rule", "regularizer", *further, *self._columns, right=_RIGHT)
        for index, row in enumerate(self.rows):
            rule, regularizer = "-", "no rule"
            if row.patterns:
                rule, regularizer = str(row.patterns[0]), self._rules[row.patterns[0]][1]
            cells = (column[index] for column in further.values())
            add_row(made, row.path, row.array, rule, regularizer, *cells, *self._cost([row]))
        return made

    def _totals(self) -> Table:
        made = table("rule", "pattern", "regularizer", "arrays", "size", "lost", *self._columns, right=_RIGHT)

        def add(rule: str, pattern: str, regularizer: str, rows: list[Row], lost: str) -> None:
            size = f"{sum(row.size for row in rows):,}"
            add_row(made, rule, pattern, regularizer, str(len(rows)), size, lost, *self._cost(rows))

        for index, (pattern, regularizer) in enumerate(self._rules):
            lost = [row.patterns[0] for row in self.rows if index in row.patterns[1:]]
            text = ", ".join(f"{lost.count(other)} to rule {other}" for other in sorted(set(lost)))
            met = [row for row in self.rows if row.patterns[:1] == (index,)]
            add(str(index), pattern, regularizer, met, text)
        if free := [row for row in self.rows if not row.patterns]:
            add("-", "", "no rule", free, "")
        made.add_section()
        add("all", "", "", list(self.rows), "")
        return made

    def _tables(self) -> tuple[Table, ...]:
        return self._parameters(), self._totals()
