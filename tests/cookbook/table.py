"""The table of recipes in docs/cookbook.md, as the last run of the tests found it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN = "<!-- written by make test-cookbook -->"
END = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Row:
    recipe: str
    options: str
    seconds: float
    checked: str
    figure: str

    def __str__(self) -> str:
        options = self.options.replace("|", "\\|")
        return f"| `{self.recipe}` | `{options}` | {self.seconds:.0f} | {self.checked} | {self.figure} |"


def write_table(document: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks of `document`."""
    head, _, rest = document.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    table = ["| recipe | options | seconds | checked | figure |", "|---|---|---|---|---|", *map(str, rows)]
    document.write_text(head + "\n".join([BEGIN, *table, END]) + tail)
