"""Options that several commands share."""

import json
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file; flags and environment win over it.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Database, payloads and checkpoints.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(value: object) -> None:
    """Indented JSON on standard output, for scripts."""
    typer.echo(json.dumps(value, indent=2))
