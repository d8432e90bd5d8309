"""`openrl serve`: starts gateway, scheduler and workers on this machine."""

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from openrl.cli.model_paths import with_models
from openrl.cli.options import ConfigFile, DataDirOption, HostOption, LogLevelOption, ModelOption, PortOption
from openrl.cli.server import ServeOptions, run_server
from openrl.config import load_config
from openrl.telemetry.logs import configure_logs


def serve(
    model: ModelOption = None,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when ready: JSON with url and key, readable by its owner only.")
    ] = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Serve base models until SIGTERM or Ctrl-C; needs no other process."""
    configure_logs("server", log_level)
    gateway = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    config = with_models(load_config(config_file, data_dir=data_dir, gateway=gateway or None), model or [])
    uvloop.run(run_server(config, ServeOptions(ready_file, log_level)))
