"""What a scheduler process answers over HTTP: its probes, what its pools need, and its metrics."""

import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Protocol

from openrl.cli.http_server import create_http_server
from openrl.config import GatewayConfig
from openrl.errors import OpenRLError
from openrl.scheduler.demand import PoolSignal
from openrl.telemetry.http import MeteredApp, Receive, Scope, Send
from openrl.telemetry.metrics import Metrics

_POOL_PATH = "/autoscale/"


class Probed(Protocol):
    """What is asked of a scheduler process."""

    def is_started(self) -> bool:
        """Whether its store has been open."""
        ...

    def is_ready(self) -> bool:
        """Whether its store is open, and it is not about to end."""
        ...

    def state(self) -> Mapping[str, object]:
        """What it does."""
        ...


async def serve_probes(
    listener: socket.socket,
    metrics: Metrics,
    bounds: GatewayConfig,
    probed: Probed,
    read_pool: Callable[[str], Awaitable[PoolSignal]],
) -> None:
    """For ever. The loop that answers /livez is the one that decides: where it hangs, so does the answer."""

    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        status, shown = await _answer(scope["path"], probed, read_pool)
        body = json.dumps(shown).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    await create_http_server(MeteredApp(answer, metrics), bounds).serve(sockets=[listener])


async def _answer(
    path: str, probed: Probed, read_pool: Callable[[str], Awaitable[PoolSignal]]
) -> tuple[int, Mapping[str, object]]:
    if path.startswith(_POOL_PATH):
        try:
            return 200, asdict(await read_pool(path.removeprefix(_POOL_PATH)))
        except (OpenRLError, TimeoutError) as error:  # who scales then leaves things as they are
            return 503, {"error": str(error) or "the store does not answer"}
    is_well = {"/startupz": probed.is_started, "/readyz": probed.is_ready}.get(path, lambda: True)()
    return 200 if is_well else 503, probed.state()
