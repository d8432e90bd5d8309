"""`openrl worker`: computes for whichever scheduler leads."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from openrl.cli.credentials import have_secret
from openrl.cli.data_dir import DataDir
from openrl.cli.model_paths import with_models
from openrl.cli.options import ConfigFile, DataDirOption, LogLevelOption, ModelOption
from openrl.config import WorkerRole, load_config, worker_environment
from openrl.worker.settings import WorkerSettings
from openrl.worker.supervisor import WORKER_COMMAND


def worker(
    model: ModelOption = None,
    name: Annotated[str | None, typer.Option(help="Tells workers apart; by default the machine's name.")] = None,
    pool: Annotated[str | None, typer.Option(help="Workers of one pool come and go together.")] = None,
    role: Annotated[WorkerRole | None, typer.Option(help="Take training runs, samples, or both.")] = None,
    data_dir: DataDirOption = None,
    config_file: ConfigFile = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when the models are loaded and a scheduler is found.")
    ] = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Load base models and work until SIGTERM; rpc.address may name several schedulers, with commas between."""
    given = {name: value for name, value in (("pool", pool), ("role", role)) if value is not None}
    config = with_models(load_config(config_file, data_dir=data_dir, worker=given or None), model or [])
    place = DataDir(config.data_dir)
    settings = WorkerSettings(
        worker_id=name or socket.gethostname(),
        address=config.rpc.address,
        secret=have_secret(config.rpc.secret_file, place.rpc_secret_file).hex(),
        blobs_dir=place.blobs,
        reconnects=True,
        ready_file=None if ready_file is None else ready_file.absolute(),
        log_level=log_level,
        config=config,
    )
    place.lock_scratch(settings.worker_id)
    _become(settings)


def _become(settings: WorkerSettings) -> NoReturn:
    """Turn this process into the worker: its environment must be there before its libraries are loaded."""
    with tempfile.TemporaryFile() as file:  # nobody else can open it: it holds the secret
        file.write(settings.model_dump_json().encode())
        file.flush()
        file.seek(0)
        os.dup2(file.fileno(), 0)
        os.execve(WORKER_COMMAND[0], WORKER_COMMAND, worker_environment(settings.config.data_dir))  # noqa: S606
