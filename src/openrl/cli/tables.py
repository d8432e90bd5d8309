"""Prints tables whose cells stay whole."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | int | float | None

_UNBOUNDED = 10_000  # columns


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """One line a row, however narrow the terminal is: what is cut or folded cannot be copied."""
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=_UNBOUNDED).print(table, no_wrap=True, crop=False)


def print_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """A table of these columns; what is None stays empty."""
    print_table(columns, (["" if row[name] is None else row[name] for name in columns] for row in rows))


def show_when(seconds: float | None) -> str | None:
    """A time to the second, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
