"""Prints tables whose cells stay whole."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 10_000  # columns


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """One line a row, however narrow the terminal is: what is cut or folded cannot be copied."""
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=_UNBOUNDED).print(table, no_wrap=True, crop=False)
