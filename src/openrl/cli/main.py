"""The `openrl` command."""

import sys

import typer
from pydantic import ValidationError

import openrl
from openrl.cli.admin import admin_app
from openrl.cli.cluster import cluster_app
from openrl.cli.doctor import doctor
from openrl.cli.gateway import gateway
from openrl.cli.keys import keys_app
from openrl.cli.migrate import migrate
from openrl.cli.models import models_app
from openrl.cli.projects import projects
from openrl.cli.research import research_app
from openrl.cli.runs import runs
from openrl.cli.scheduler import scheduler
from openrl.cli.serve import serve
from openrl.cli.up import up
from openrl.cli.worker import worker
from openrl.errors import OpenRLError

app = typer.Typer(
    name="openrl",
    help="Post-training of language models as a service on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(gateway)
app.command()(scheduler)
app.command()(worker)
app.command()(migrate)
app.command()(up)
app.command()(runs)
app.command()(projects)
app.command()(doctor)
app.add_typer(admin_app, name="admin")
app.add_typer(cluster_app, name="cluster")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")
app.add_typer(research_app, name="research")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(openrl.__version__)


def main() -> None:
    """Run the command line; what a user can mend is one line on standard error, never a trace."""
    try:
        app()
    except OpenRLError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail("; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()))


def _fail(message: str) -> None:
    typer.secho(f"openrl: {message}", fg="red", err=True)
    sys.exit(1)
