"""SQL of checkpoints that share the files of another."""

from dataclasses import replace

from sqlalchemy import Connection

from openrl.errors import InvalidRequest, NotFound
from openrl.store import quota_rows
from openrl.store.base import CheckpointRow, RunRow, SessionRow
from openrl.store.checkpoints import is_object_used, owned_checkpoint, put_checkpoint
from openrl.store.quotas import Bound
from openrl.store.runs import insert_run, repeated_run
from openrl.store.sessions import create_session


def copy_checkpoint(
    connection: Connection, copy: CheckpointRow, run: RunRow, session: SessionRow | None, max_stored: Bound
) -> CheckpointRow:
    """Insert the copy with its run and its session; the first copy if this is a repetition."""
    if session is not None:
        run = replace(run, session_id=create_session(connection, session).session_id)
    first = repeated_run(connection, run)
    if first is not None:
        check_repetition(first, run)
        return owned_checkpoint(connection, copy.tenant_id, first.spec.run_id, copy.kind, copy.name)
    check_session(run, session)
    if not is_object_used(connection, copy.key):
        raise NotFound.of("checkpoint", str(run.copied_from))
    quota_rows.check_stored(connection, copy, run.session_id, max_stored)
    insert_run(connection, run)
    put_checkpoint(connection, copy, "copy")
    return copy


def check_repetition(first: RunRow, run: RunRow) -> None:
    """Raises InvalidRequest unless the stored run is a copy of the same checkpoint."""
    if first.copied_from is None:
        raise _taken(first, f"training run {first.spec.run_id} exists already and holds no copy")
    if first.copied_from != run.copied_from:
        raise _taken(first, f"training run {first.spec.run_id} holds a copy of {first.copied_from} already")


def _taken(first: RunRow, reason: str) -> InvalidRequest:
    message = f"{reason}; choose another model_seq_id"
    return InvalidRequest(message, "name_taken", value=first.model_seq_id, bound="a model_seq_id that is free")


def check_session(run: RunRow, session: SessionRow | None) -> None:
    """Raises InvalidRequest when the idempotency key found a session that was made for something else."""
    if session is not None and run.session_id != session.session_id:
        message = f"the idempotency key was used for session {run.session_id}, which is no copy; send another"
        raise InvalidRequest(message, "name_taken", bound="an idempotency key that is free")
