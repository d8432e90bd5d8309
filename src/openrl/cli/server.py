"""The server of one machine: gateway and scheduler in this process, the worker in a child."""

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from openrl.catalog import Catalog
from openrl.cli.announcement import Announcement, Starting
from openrl.cli.credentials import have_first_key, have_secret
from openrl.cli.data_dir import DataDir, open_store
from openrl.cli.gateway_part import GatewayPart
from openrl.cli.http_server import bind, url_of
from openrl.cli.interpreter import settle_interpreter
from openrl.cli.ready_file import write_ready_file
from openrl.cli.running import run_until_signalled
from openrl.cli.scheduler_part import SchedulerPart, WorkerEndpoint
from openrl.cli.worker_metrics import copy_worker_stats
from openrl.config import Config
from openrl.telemetry.logs import LogLevel
from openrl.telemetry.metrics import Metrics, create_metrics
from openrl.telemetry.tracing import tracing
from openrl.worker.settings import WorkerSettings
from openrl.worker.supervisor import WORKER_COMMAND, Supervisor

_READY_POLL_S = 0.05
_WORKER_ID = "worker-0"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `openrl serve` takes beside the configuration."""

    ready_file: Path | None = None
    log_level: LogLevel = "warning"
    worker_command: tuple[str, ...] = WORKER_COMMAND


async def run_server(config: Config, options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the wait.

    Raises OpenRLError when it cannot start: no such model, the port or the data directory is taken.
    """
    data_dir = DataDir(config.data_dir)
    catalog = Catalog.load(config.models)
    metrics = create_metrics(config.telemetry)
    with (
        bind(config.gateway.host, config.gateway.port) as listener,
        data_dir.lock(),
        _endpoint(config, options, metrics) as endpoint,
        tracing(config.telemetry, "openrl-gateway", config.telemetry.sample_ratio) as gateway_tracer,
        tracing(config.telemetry, "openrl-scheduler") as scheduler_tracer,
    ):
        async with open_store(config, metrics.store_commit_seconds.observe) as (store, blobs):
            await asyncio.to_thread(blobs.check)
            key = await have_first_key(store, data_dir.key_file, time.time())
            signing_key = have_secret(config.gateway.secret_file, data_dir.secret_file)
            log_answers = options.log_level == "debug"
            gateway = GatewayPart(
                config,
                store,
                blobs,
                catalog,
                signing_key,
                metrics,
                log_answers=log_answers,
                tracer=gateway_tracer,
                needs_workers=True,
            )
            scheduler = SchedulerPart(config, endpoint, metrics, scheduler_tracer)
            announcement = Announcement(url_of(listener), key, tuple(model.name for model in catalog.all()))
            settle_interpreter()

            async def drain() -> None:
                await gateway.drain()
                await scheduler.drain()

            await run_until_signalled(
                [
                    scheduler.run_in_terms if store.cluster.is_shared else partial(scheduler.run_alone, store, blobs),
                    partial(gateway.run, listener),
                    partial(_announce, announcement, gateway, options.ready_file),
                    partial(copy_worker_stats, scheduler.worker_stats, metrics),
                ],
                drain,
            )


@contextlib.contextmanager
def _endpoint(config: Config, options: ServeOptions, metrics: Metrics) -> Generator[WorkerEndpoint]:
    """For the one worker that is our own child."""
    secret = secrets.token_bytes(32)
    restarts = metrics.worker_restarts.labels(_WORKER_ID)

    def supervise(address: str) -> Supervisor:
        settings = WorkerSettings(
            worker_id=_WORKER_ID,
            address=address,
            secret=secret.hex(),
            blobs_dir=DataDir(config.data_dir).blobs,
            log_level=options.log_level,
            config=config,
        )
        return Supervisor(settings, options.worker_command, on_restart=restarts.inc)

    # Not in the data directory: a socket's path may be no longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="openrl-") as directory:
        yield WorkerEndpoint(f"unix:{directory}/scheduler", secret, supervise)


async def _announce(announcement: Announcement, gateway: GatewayPart, ready_file: Path | None) -> None:
    with Starting(announcement.base_models):
        # Two events of other packages' making, once at the start: asking again is simplest.
        while not (gateway.readiness.is_ready() and gateway.is_listening()):  # noqa: ASYNC110
            await asyncio.sleep(_READY_POLL_S)
    if ready_file is not None:
        write_ready_file(ready_file, {"url": announcement.url, "key": announcement.key})
    announcement.show()
