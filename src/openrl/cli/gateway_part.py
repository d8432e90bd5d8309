"""The gateway's side of a process: HTTP over a store, until it is drained."""

import asyncio
import socket

from openrl.catalog import Catalog
from openrl.cli.http_server import create_http_server
from openrl.config import Config
from openrl.gateway.app import create_app
from openrl.gateway.long_polls import LongPolls
from openrl.gateway.readiness import Readiness
from openrl.store.base import Blobs, Store
from openrl.store.quotas import default_limits
from openrl.telemetry.http import MeteredApp
from openrl.telemetry.http_traces import TracedApp
from openrl.telemetry.metrics import Metrics
from openrl.telemetry.tracing import Tracer


class GatewayPart:
    """Built inside the event loop that runs it; `log_answers`: a line for every call."""

    def __init__(
        self,
        config: Config,
        store: Store,
        blobs: Blobs,
        catalog: Catalog,
        signing_key: bytes,
        metrics: Metrics,
        *,
        log_answers: bool,
        tracer: Tracer | None = None,
        needs_workers: bool = False,
    ) -> None:
        """`needs_workers`: it is ready when the models are served; otherwise when the store answers."""
        self._drain_delay_s = config.gateway.drain_delay_s
        self._polls = LongPolls()
        self._ended = asyncio.Event()
        self.readiness = Readiness(store.cluster, [model.name for model in catalog.all()] if needs_workers else [])
        app = create_app(
            store,
            blobs,
            catalog,
            config.gateway,
            signing_key=signing_key,
            client=config.client,
            auth=config.auth,
            is_ready=self.readiness.is_ready,
            polls=self._polls,
            limits=default_limits(config.quotas),
            samples_with_vllm=config.sampling.engine == "vllm",
        )
        if tracer is not None:
            app = TracedApp(app, tracer)
        self._http = create_http_server(MeteredApp(app, metrics, log_answers=log_answers), config.gateway)

    async def run(self, listener: socket.socket) -> None:
        """Until drained."""
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self.readiness.run())
            await self._http.serve(sockets=[listener])
            looking.cancel()
        self._ended.set()

    def is_listening(self) -> bool:
        """Whether calls are taken."""
        return self._http.started

    async def drain(self) -> None:
        """Say that this gateway is not ready, answer what can be answered, end."""
        self.readiness.stop()
        await asyncio.sleep(self._drain_delay_s)
        self._polls.end()
        self._http.should_exit = True
        await self._ended.wait()
