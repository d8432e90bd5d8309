"""What a worker process is told when it starts, and tells when it ends."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from openrl.config import Config
from openrl.telemetry.logs import LogLevel

EXIT_REFUSED = 2
"""Exit status when the engines cannot be built from this configuration: starting again would not help."""
EXIT_LOST = 3
"""Exit status when the scheduler is gone or a thread of this process broke."""


class WorkerSettings(BaseModel):
    """Read from standard input: the secret appears in no command line and no environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    worker_id: str
    address: str
    """Where the scheduler listens (see rpc.transport); several with commas between."""
    reconnects: bool = False
    """When the scheduler is lost, keep the models and look for another; otherwise end."""
    ready_file: Path | None = None
    """Written when the models are loaded and a scheduler has taken the worker: JSON with its id."""
    secret: str
    """Shared with the scheduler, in hex."""
    blobs_dir: Path
    """Payloads, results and checkpoints, shared with the server."""
    log_level: LogLevel = "info"
    config: Config
