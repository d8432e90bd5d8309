"""`openrl scheduler`: decides who runs what where; one leads, others stand by."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from openrl.cli.credentials import have_secret
from openrl.cli.data_dir import DataDir
from openrl.cli.http_server import bind
from openrl.cli.interpreter import settle_interpreter
from openrl.cli.options import ConfigFile, DataDirOption, LogLevelOption
from openrl.cli.pools import Pools
from openrl.cli.probes import serve_probes
from openrl.cli.ready_file import write_ready_file
from openrl.cli.running import run_until_signalled
from openrl.cli.scheduler_part import SchedulerPart, WorkerEndpoint
from openrl.cli.worker_metrics import copy_worker_stats
from openrl.config import Config, load_config
from openrl.telemetry.logs import configure_logs
from openrl.telemetry.metrics import create_metrics
from openrl.telemetry.tracing import Tracer, tracing


def scheduler(
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written when it stands by: JSON with address.")] = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Stand by until no other scheduler leads, then lead, until SIGTERM; workers connect to rpc.address."""
    configure_logs("scheduler", log_level)
    config = load_config(config_file, data_dir=data_dir)
    uvloop.run(_run(config, ready_file))


async def _run(config: Config, ready_file: Path | None) -> None:
    with tracing(config.telemetry, "openrl-scheduler") as tracer:
        await _run_traced(config, ready_file, tracer)


async def _run_traced(config: Config, ready_file: Path | None, tracer: Tracer | None) -> None:
    secret = have_secret(config.rpc.secret_file, DataDir(config.data_dir).rpc_secret_file)
    metrics = create_metrics(config.telemetry)
    part = SchedulerPart(config, WorkerEndpoint(config.rpc.address, secret), metrics, tracer)
    pools = Pools(config, part.store, metrics)
    settle_interpreter()

    async def tell() -> None:
        await part.standing_by.wait()
        if ready_file is not None:
            write_ready_file(ready_file, {"address": config.rpc.address})

    parts = [part.run_in_terms, tell, partial(copy_worker_stats, part.worker_stats, metrics)]
    with ExitStack() as stack:
        if config.scheduler.http_address:
            host, _, port = config.scheduler.http_address.rpartition(":")
            listener = stack.enter_context(bind(host, int(port)))
            parts.append(partial(serve_probes, listener, metrics, config.gateway, part, pools.signal))
            parts.append(pools.keep_gauges)
        await run_until_signalled(parts, part.drain)
