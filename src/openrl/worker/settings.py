"""What a worker process is told when it starts."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from openrl.config import Config
from openrl.telemetry.logs import LogLevel


class WorkerSettings(BaseModel):
    """Read from standard input: the secret appears in no command line and no environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    worker_id: str
    address: str
    """Where the scheduler listens (see rpc.transport)."""
    secret: str
    """Shared with the scheduler, in hex."""
    blobs_dir: Path
    """Payloads, results and checkpoints, shared with the server."""
    log_level: LogLevel = "info"
    config: Config
