"""`openrl research serve`: pages of studies for a browser."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from openrl.cli.http_server import bind, create_http_server, url_of
from openrl.config import GatewayConfig
from openrl.errors import InvalidRequest
from openrl.research.pages import create_study_app
from openrl.research.pages.host_guard import HostGuard

PriceOption = Annotated[
    float | None, typer.Option(min=0.0, help="Price of a GPU-hour; shows what the study has cost by it.")
]


def serve(
    directory: Annotated[Path, typer.Argument(help="A study, or a directory of studies.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which browsers may ask, beside addresses and localhost.")
    ] = None,
    gpu_hour_price: PriceOption = None,
) -> None:
    """Show studies in a browser, also while they run; changes nothing in them."""
    if any(":" in name or "/" in name or not name for name in allow_host or ()):
        raise InvalidRequest(f"--allow-host is {allow_host}; it must be names without scheme and port")
    app = HostGuard(create_study_app(directory, gpu_hour_price), allow_host or ())
    listener = bind(host, port)
    url = url_of(listener)
    typer.echo(f"{url}/ shows {directory}; Ctrl-C ends it")
    if not url.startswith(("http://127.", "http://[::1]")) or host in ("0.0.0.0", "::"):  # noqa: S104
        typer.echo("whoever can reach this address can read the studies: there are no keys", err=True)

    async def run() -> None:
        server = create_http_server(app, GatewayConfig())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
        await server.serve(sockets=[listener])

    asyncio.run(run())
