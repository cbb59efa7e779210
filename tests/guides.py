"""Tables of the guides, made from the data that the tests run over."""

import pathlib
from collections.abc import Iterable, Sequence

GUIDES = pathlib.Path(__file__).parents[1] / "examples" / "guides"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def assert_shown(page: str, text: str) -> None:
    """Checks that a page has some text. The error has the right one, to be copied into the page."""
    assert text in (GUIDES / page).read_text(), f"{page} must have this text:\n\n{text}\n"
