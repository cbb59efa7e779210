"""A table of which rule met which parameter, as text, for a terminal and for a notebook."""

import html
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Row(NamedTuple):
    """One parameter.

    Attributes:
      path: its path in the tree.
      array: its dtype and shape.
      size: the number of its values.
      patterns: the indices of the rules whose patterns match it, the first of which has it.
      penalty: a number where values exist, else None.
    """

    path: str
    array: str
    size: int
    patterns: tuple[int, ...]
    penalty: float | None


class Explanation:
    """What `Rules.explain` returns. `str` of it is plain text, whole; `rows` are its lines as data."""

    def __init__(self, rows: tuple[Row, ...], rules: tuple[tuple[str, str], ...]):
        self.rows = rows
        self._rules = rules  # pattern and regularizer of each, as text
        self._total = sum(row.penalty or 0.0 for row in rows)
        # Of shapes alone, and of traced arrays, there is no penalty to show.
        self._columns = ("penalty", "share") if any(row.penalty is not None for row in rows) else ()

    def _cost(self, rows: list[Row]) -> tuple[str, ...]:
        """The penalty of some rows and its share of the whole, or blanks where they have none."""
        known = [row.penalty for row in rows if row.penalty is not None]
        if not self._columns or not known:
            return ("",) * len(self._columns)
        has_share = self._total and math.isfinite(self._total)
        return f"{sum(known):.6g}", f"{sum(known) / self._total:.1%}" if has_share else "-"

    def _parameters(self) -> Table:
        table = _table("path", "array", "rule", "regularizer", *self._columns)
        for row in self.rows:
            rule, regularizer = "-", "no rule"
            if row.patterns:
                rule, regularizer = str(row.patterns[0]), self._rules[row.patterns[0]][1]
            _add(table, row.path, row.array, rule, regularizer, *self._cost([row]))
        return table

    def _totals(self) -> Table:
        table = _table("rule", "pattern", "regularizer", "arrays", "size", "lost", *self._columns)

        def add(rule: str, pattern: str, regularizer: str, rows: list[Row], lost: str) -> None:
            size = f"{sum(row.size for row in rows):,}"
            _add(table, rule, pattern, regularizer, str(len(rows)), size, lost, *self._cost(rows))

        for index, (pattern, regularizer) in enumerate(self._rules):
            lost = [row.patterns[0] for row in self.rows if index in row.patterns[1:]]
            text = ", ".join(f"{lost.count(other)} to rule {other}" for other in sorted(set(lost)))
            met = [row for row in self.rows if row.patterns[:1] == (index,)]
            add(str(index), pattern or "''", regularizer, met, text)
        if free := [row for row in self.rows if not row.patterns]:
            add("-", "", "no rule", free, "")
        table.add_section()
        add("all", "", "", list(self.rows), "")
        return table

    def __rich_console__(self, console: Console, options: object) -> Iterator[Table]:
        yield self._parameters()
        yield self._totals()

    def __str__(self) -> str:
        tables = (self._parameters(), self._totals())
        wide = Console(width=100_000)
        width = max(wide.measure(table).maximum for table in tables)
        console = Console(file=io.StringIO(), width=width, color_system=None)
        with console.capture() as captured:
            for table in tables:
                console.print(table)
        lines = (line[1:].rstrip() for line in captured.get().splitlines())  # rich begins each with a blank
        return "\n".join(lines).strip("\n").replace("\n\n\n", "\n\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _table(*columns: str) -> Table:
    """A table whose cells are folded where a terminal is narrow, never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column in ("arrays", "size", "penalty", "share")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: brackets in a pattern are no markup."""
    table.add_row(*map(Text, cells))
