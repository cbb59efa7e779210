"""A table of which rule met which parameter, as text, for a terminal and for a notebook."""

import html
import io
from collections.abc import Iterator
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One parameter: `rule` is the index of its rule or None, `penalty` a number where values exist."""

    path: str
    array: str
    size: int
    rule: int | None
    penalty: float | None


class Explanation:
    """What `Rules.explain` returns. `str` of it is plain text, whole; `rows` are its lines as data."""

    def __init__(self, rows: tuple[Row, ...], rules: tuple[tuple[str, str], ...]):
        self.rows = rows
        self._rules = rules  # pattern and regularizer of each, as text

    def _share(self, penalties: list[float | None]) -> tuple[str, str]:
        """A penalty and its share of the total, or blanks where no values exist."""
        known = [penalty for penalty in penalties if penalty is not None]
        if not known:
            return "", ""
        part, whole = sum(known), sum(row.penalty or 0.0 for row in self.rows)
        return f"{part:.6g}", f"{part / whole:.1%}" if whole else "-"

    def _parameters(self) -> Table:
        table = _table("path", "array", "rule", "regularizer", "penalty", "share")
        for row in self.rows:
            rule, regularizer = ("-", "no rule")
            if row.rule is not None:
                rule, regularizer = str(row.rule), self._rules[row.rule][1]
            table.add_row(row.path, row.array, rule, regularizer, *self._share([row.penalty]))
        return table

    def _totals(self) -> Table:
        table = _table("rule", "pattern", "regularizer", "leaves", "weights", "penalty", "share")
        groups = [(str(i), *rule, i) for i, rule in enumerate(self._rules)]
        for rule, pattern, regularizer, index in [*groups, ("-", "", "no rule", None)]:
            rows = [row for row in self.rows if row.rule == index]
            count, weights = str(len(rows)), f"{sum(row.size for row in rows):,}"
            share = self._share([row.penalty for row in rows])
            if rows or index is not None:
                table.add_row(rule, pattern, regularizer, count, weights, *share)
        weights = f"{sum(row.size for row in self.rows):,}"
        share = self._share([row.penalty for row in self.rows])
        table.add_section()
        table.add_row("all", "", "", str(len(self.rows)), weights, *share)
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
        right = column in ("leaves", "weights", "penalty", "share")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table
