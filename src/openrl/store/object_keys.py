"""Keys of the objects that are swept, and what they say."""

from openrl.protocol.custom_loss import CUSTOM_LOSSES as CUSTOM_LOSSES

SNAPSHOTS = "snapshots/"
TRACES = "traces/"


def snapshot_key(run_id: str, seq_id: int) -> str:
    """Where a run's state after a request is kept."""
    return f"{SNAPSHOTS}{run_id}/{seq_id}"


def read_snapshot_key(key: str) -> tuple[str, int]:
    """The run and the number in a key that `snapshot_key` made."""
    run_id, _, seq_id = key.removeprefix(SNAPSHOTS).rpartition("/")
    return run_id, int(seq_id)


def trace_key(session_id: str) -> str:
    """The object that holds a session's trace."""
    return f"{TRACES}{session_id}"
