"""Keys of the objects that workers write and sweeps delete, and what they say.

`attempt` is never the same twice: a worker that was given up may still be writing what another one has written since,
and what it writes must not take the place of what was acknowledged.
"""

from openrl.protocol.custom_loss import CUSTOM_LOSSES as CUSTOM_LOSSES
from openrl.protocol.runs import CheckpointKind

SNAPSHOTS = "snapshots/"
CHECKPOINTS = "checkpoints/"
TRACES = "traces/"


def snapshot_key(run_id: str, seq_id: int, attempt: str) -> str:
    """Where a run's state after a request is kept."""
    return f"{SNAPSHOTS}{run_id}/{seq_id}/{attempt}"


def read_snapshot_key(key: str) -> tuple[str, int]:
    """The run and the number in a key that `snapshot_key` made; older ones have no attempt."""
    run_id, seq_id, *_ = key.removeprefix(SNAPSHOTS).split("/")
    return run_id, int(seq_id)


def run_of_checkpoint(key: str) -> str:
    """The run that made the files under a checkpoint's key; empty if it is no such key."""
    return key.removeprefix(CHECKPOINTS).partition("/")[0] if key.startswith(CHECKPOINTS) else ""


def checkpoint_key(run_id: str, kind: CheckpointKind, name: str, request_id: str, attempt: str) -> str:
    """Where what a request saved is kept; the name is "" for an unnamed save."""
    return f"{CHECKPOINTS}{run_id}/{kind}/{name or request_id}/{request_id}-{attempt}"


def trace_key(session_id: str) -> str:
    """The object that holds a session's trace."""
    return f"{TRACES}{session_id}"
