"""Options that several commands share."""

import json
from pathlib import Path
from typing import Annotated

import typer

from openrl.telemetry.logs import LogLevel

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file; flags and environment win over it.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Database, payloads and checkpoints.")]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="NAME, DIR or NAME=DIR of a base model; may be given several times.")
]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
]
LogLevelOption = Annotated[
    LogLevel,
    typer.Option(
        "--log-level",
        envvar="OPENRL_LOG_LEVEL",
        help="Least level of the lines on standard error; debug has every call.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Name of the tenant.")]


def print_json(value: object) -> None:
    """Indented JSON on standard output, for scripts."""
    typer.echo(json.dumps(value, indent=2))
