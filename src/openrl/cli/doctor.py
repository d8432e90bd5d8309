"""`openrl doctor`: checks this machine and says how to mend what is wrong."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from openrl.cli.checks import Finding, run_checks
from openrl.cli.data_dir import DataDir
from openrl.cli.model_paths import find_model
from openrl.cli.options import ConfigFile, DataDirOption, JsonOption, print_json
from openrl.config import load_config
from openrl.model.downloads import DEFAULT_MODELS_DIR


def doctor(
    model: Annotated[list[str] | None, typer.Option(help="NAME, DIR or NAME=DIR, as for `openrl serve`.")] = None,
    host: Annotated[str | None, typer.Option(help="Address the server would listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port the server would listen on.")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
) -> None:
    """Check this machine; exit status 1 if anything needs mending."""
    gateway = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    config = load_config(config_file, data_dir=data_dir, gateway=gateway or None)
    if model:
        dirs = (DataDir(config.data_dir).models, Path(DEFAULT_MODELS_DIR))
        config = config.model_copy(update={"models": tuple(find_model(each, dirs) for each in model)})
    findings = list(run_checks(config))
    if as_json:
        print_json([{"subject": each.subject, "found": each.found, "remedy": each.remedy} for each in findings])
    else:
        _print(findings)
    if any(each.is_problem for each in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for each in findings:
        mark = "[red]✗[/red]" if each.is_problem else "[green]✓[/green]"
        console.print(f"{mark} {each.subject:14} {escape(each.found)}")
        if each.is_problem:
            console.print(f"  [yellow]→ {escape(each.remedy)}[/yellow]")
