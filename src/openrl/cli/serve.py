"""`openrl serve`: starts gateway, scheduler and workers on this machine."""

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from openrl.cli.data_dir import DataDir
from openrl.cli.model_paths import find_model
from openrl.cli.options import ConfigFile, DataDirOption
from openrl.cli.server import ServeOptions, run_server
from openrl.config import Config, load_config
from openrl.errors import InvalidRequest
from openrl.model.downloads import DEFAULT_MODELS_DIR
from openrl.telemetry.logs import LogLevel, configure_logs


def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="NAME, DIR or NAME=DIR of a base model; may be given several times.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when ready: JSON with url and key, readable by its owner only.")
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            envvar="OPENRL_LOG_LEVEL", help="Least level of the lines on standard error; debug has every call."
        ),
    ] = "warning",
) -> None:
    """Serve base models until SIGTERM or Ctrl-C; needs no other process."""
    configure_logs("server", log_level)
    gateway = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    config = with_models(load_config(config_file, data_dir=data_dir, gateway=gateway or None), model or [])
    uvloop.run(run_server(config, ServeOptions(ready_file, log_level)))


def with_models(config: Config, models: list[str]) -> Config:
    """The configuration with these models, or its own where none are given; raises InvalidRequest without any."""
    dirs = (DataDir(config.data_dir).models, DEFAULT_MODELS_DIR)
    found = tuple(find_model(each, dirs) for each in models) or config.models
    if not found:
        raise InvalidRequest("no model to serve: give --model NAME=DIRECTORY (see also: openrl models list)")
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"model {name!r} is given {names.count(name)} times; names must differ")
    return config.model_copy(update={"models": found, "data_dir": config.data_dir.absolute()})
