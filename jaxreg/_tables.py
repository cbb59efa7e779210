"""Tables as plain text, for a terminal and for a notebook."""

import html
import io
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Tables:
    """Tables that `str` gives whole, as plain text. `rich.print` folds them to the width of a terminal."""

    def _tables(self) -> tuple[Table, ...]:
        raise NotImplementedError

    def __rich_console__(self, console: Console, options: object) -> Iterator[Table]:
        yield from self._tables()

    def __str__(self) -> str:
        tables = self._tables()
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


def table(*columns: str, right: tuple[str, ...]) -> Table:
    """Returns a table whose cells are folded in a narrow terminal, never cut. The columns in `right` are numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def add_row(table: Table, *cells: str) -> None:
    """Adds a row of plain text, in which brackets are not markup."""
    table.add_row(*map(Text, cells))
