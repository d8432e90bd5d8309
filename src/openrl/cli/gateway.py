"""`openrl gateway`: HTTP in a process of its own, as many as are wanted."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from openrl.catalog import Catalog
from openrl.cli.credentials import have_secret
from openrl.cli.data_dir import DataDir, check_is_shared, open_store
from openrl.cli.gateway_part import GatewayPart
from openrl.cli.http_server import bind, url_of
from openrl.cli.interpreter import settle_interpreter
from openrl.cli.model_paths import with_models
from openrl.cli.options import ConfigFile, DataDirOption, HostOption, LogLevelOption, ModelOption, PortOption
from openrl.cli.ready_file import write_ready_file
from openrl.cli.running import run_until_signalled
from openrl.config import Config, load_config
from openrl.telemetry.logs import LogLevel, configure_logs
from openrl.telemetry.metrics import create_metrics
from openrl.telemetry.tracing import tracing


def gateway(
    model: ModelOption = None,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written when calls are taken: JSON with url.")] = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Answer clients until SIGTERM; a scheduler and workers run elsewhere, over the same PostgreSQL."""
    configure_logs("gateway", log_level)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    config = with_models(load_config(config_file, data_dir=data_dir, gateway=given or None), model or [])
    uvloop.run(_run(config, ready_file, log_level))


async def _run(config: Config, ready_file: Path | None, log_level: LogLevel) -> None:
    catalog = Catalog.load(config.models)
    metrics = create_metrics(config.telemetry)
    with (
        bind(config.gateway.host, config.gateway.port) as listener,
        tracing(config.telemetry, "openrl-gateway", config.telemetry.sample_ratio) as tracer,
    ):
        async with open_store(config, metrics.store_commit_seconds.observe) as (store, blobs):
            check_is_shared(store)
            await asyncio.to_thread(blobs.check)
            secret = have_secret(config.gateway.secret_file, DataDir(config.data_dir).secret_file)
            log_answers = log_level == "debug"
            part = GatewayPart(config, store, blobs, catalog, secret, metrics, log_answers=log_answers, tracer=tracer)
            settle_interpreter()
            if ready_file is not None:  # calls that come before the loop runs wait in the socket
                write_ready_file(ready_file, {"url": url_of(listener)})
            await run_until_signalled([partial(part.run, listener)], part.drain)
