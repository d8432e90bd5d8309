"""SQL of checkpoints. `now` decides which ones have expired."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, update

from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import CheckpointKind
from openrl.store import audit, runs, usage
from openrl.store.base import CheckpointRow, Page
from openrl.store.ledger import AuditEntry
from openrl.store.projects import is_kept
from openrl.store.rows import one_row, plain_values, rows_of, select_rows
from openrl.store.schema import HAS_OBJECT, checkpoints, doomed_objects, samplers
from openrl.store.schema import requests as request_table
from openrl.store.schema import runs as run_table

# A request of an open run that would run (again) if the run had to be rebuilt now reads the doomed object.
_IS_WANTED = (
    exists()
    .where(request_table.c.object_key == doomed_objects.c.key, HAS_OBJECT)
    .where(request_table.c.state.in_(("queued", "done")), run_table.c.run_id == request_table.c.run_id)
    .where(~run_table.c.is_closed, request_table.c.seq_id > run_table.c.snapshot_seq_id)
)

EXPIRED_BATCH = 1000  # rows in one transaction, so that arrivals never wait long behind a large clean-up

_KEYS_AT_ONCE = 500  # values in one query


def put_checkpoint(connection: Connection, checkpoint: CheckpointRow, action: Literal["save", "copy"] = "save") -> None:
    """Insert a checkpoint in place of one with the same run, kind and name."""
    at = _is(checkpoint.run_id, checkpoint.kind, checkpoint.name)
    replaced: list[str] = []
    for old in rows_of(connection, CheckpointRow, select_rows(CheckpointRow).where(at)):
        connection.execute(delete(checkpoints).where(at))
        usage.note_end_of_storage(connection, old, checkpoint.created_at)
        replaced.append(old.key)
    connection.execute(checkpoints.insert(), plain_values(checkpoint))
    for key in replaced:
        doom_if_unused(connection, key)
    audit.record(connection, checkpoint.tenant_id, checkpoint_entry(checkpoint, action, checkpoint.created_at))


def close_run(connection: Connection, run_id: str, kept: CheckpointRow | None) -> None:
    """Take no more requests for a run, and keep its last state if it was open."""
    is_first = not runs.any_run(connection, run_id).is_closed
    runs.mark_closed(connection, run_id)
    if kept is not None and is_first:
        put_checkpoint(connection, kept)


def is_name_free(connection: Connection, run_id: str, kind: CheckpointKind, name: str, now: float) -> bool:
    """Whether no checkpoint that has not expired has this name."""
    return connection.scalar(select(checkpoints.c.key).where(_is(run_id, kind, name), is_kept(now))) is None


def is_object_used(connection: Connection, key: str) -> bool:
    """Whether a checkpoint has its files under this key."""
    return connection.scalar(select(checkpoints.c.key).where(checkpoints.c.key == key).limit(1)) is not None


def doom_if_unused(connection: Connection, key: str) -> None:
    """Note that the files under a key must be deleted, unless a checkpoint has them."""
    is_doomed = connection.scalar(select(doomed_objects.c.key).where(doomed_objects.c.key == key)) is not None
    if not is_object_used(connection, key) and not is_doomed:
        connection.execute(doomed_objects.insert(), {"key": key})


def list_doomed(connection: Connection, key: str | None) -> tuple[str, ...]:
    """Keys whose files must be deleted and that no replay would read; only `key`, if given."""
    query = select(doomed_objects.c.key).where(~_IS_WANTED).order_by(doomed_objects.c.key)
    return tuple(connection.scalars(query if key is None else query.where(doomed_objects.c.key == key)))


def forget_doomed(connection: Connection, key: str) -> None:
    """The files under a key are deleted."""
    connection.execute(delete(doomed_objects).where(doomed_objects.c.key == key))


def get_checkpoint(
    connection: Connection, tenant_id: str, run_id: str, kind: CheckpointKind, name: str, now: float
) -> CheckpointRow:
    """The tenant's own, or anybody's that is public."""
    visible = or_(checkpoints.c.tenant_id == tenant_id, checkpoints.c.is_public)
    query = select_rows(CheckpointRow).where(_is(run_id, kind, name), visible, is_kept(now))
    return one_row(connection, CheckpointRow, query, "checkpoint", str(CheckpointPath(run_id, kind, name)))


def own_checkpoint(
    connection: Connection, tenant_id: str, run_id: str, kind: CheckpointKind, name: str, now: float
) -> CheckpointRow:
    """The tenant's own that has not expired."""
    return owned_checkpoint(connection, tenant_id, run_id, kind, name, is_kept(now))


def list_checkpoints(
    connection: Connection,
    tenant_id: str,
    limit: int,
    offset: int,
    run_id: str | None,
    project_id: str | None,
    now: float,
) -> Page[CheckpointRow]:
    """The tenant's own, newest first; of one run, of one project if they are named."""
    wanted = and_(checkpoints.c.tenant_id == tenant_id, is_kept(now))
    if run_id is not None:
        wanted = and_(wanted, checkpoints.c.run_id == run_id)
    if project_id is not None:
        wanted = and_(wanted, checkpoints.c.run_id.in_(runs.runs_of_project(tenant_id, project_id)))
    newest = (
        select_rows(CheckpointRow)
        .where(wanted)
        .order_by(
            checkpoints.c.created_at.desc(),
            checkpoints.c.run_id.desc(),
            checkpoints.c.kind.desc(),
            checkpoints.c.name.desc(),
        )
    )
    count = connection.scalar(select(func.count()).select_from(checkpoints).where(wanted)) or 0
    return Page(rows_of(connection, CheckpointRow, newest.limit(limit).offset(offset)), count)


def delete_expired(connection: Connection, now: float) -> tuple[CheckpointRow, ...]:
    """Remove a batch of the checkpoints of all tenants past their expiry, the longest expired first."""
    order = (checkpoints.c.expires_at, checkpoints.c.run_id, checkpoints.c.kind, checkpoints.c.name)
    query = select_rows(CheckpointRow).where(checkpoints.c.expires_at <= now).order_by(*order)
    expired = rows_of(connection, CheckpointRow, query.limit(EXPIRED_BATCH))
    for row in expired:
        _remove(connection, row, now)
        audit.record(connection, row.tenant_id, checkpoint_entry(row, "expire", now))
    return expired


def delete_checkpoint(
    connection: Connection, tenant_id: str, run_id: str, kind: CheckpointKind, name: str, now: float
) -> CheckpointRow:
    """Remove the tenant's own, expired or not."""
    found = owned_checkpoint(connection, tenant_id, run_id, kind, name)
    _remove(connection, found, now)
    audit.record(connection, tenant_id, checkpoint_entry(found, end_action(found, now), now))
    return found


def update_checkpoint(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    kind: CheckpointKind,
    name: str,
    is_public: bool | None,
    expires_at: float | Literal["never"] | None,
    now: float,
) -> CheckpointRow:
    """Change the tenant's own; returns it as it is then."""
    own_checkpoint(connection, tenant_id, run_id, kind, name, now)
    changes: dict[str, Any] = {}
    if is_public is not None:
        changes["is_public"] = is_public
    if expires_at is not None:
        changes["expires_at"] = None if expires_at == "never" else expires_at
    if changes:
        at = update(checkpoints).where(_is(run_id, kind, name), checkpoints.c.tenant_id == tenant_id)
        connection.execute(at.values(changes))
    changed = owned_checkpoint(connection, tenant_id, run_id, kind, name)
    for entry in change_entries(changed, is_public, expires_at, now):
        audit.record(connection, tenant_id, entry)
    return changed


def checkpoint_entry(row: CheckpointRow, action: str, now: float, **details: Any) -> AuditEntry:
    """What the audit log says when something is done to a checkpoint."""
    path = str(CheckpointPath(row.run_id, row.kind, row.name))
    about = {"training_run_id": row.run_id, "tinker_path": path, "size_bytes": row.size_bytes, **details}
    return AuditEntry(now, "checkpoints", f"checkpoint_{action}", about)


def objects_in_use(connection: Connection, keys: Sequence[str]) -> frozenset[str]:
    """Those of the keys that a checkpoint or a sampler refers to."""
    found: set[str] = set()
    for column in (checkpoints.c.key, samplers.c.adapter_key):
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            asked = keys[start : start + _KEYS_AT_ONCE]
            found.update(connection.execute(select(column).where(column.in_(asked))).scalars())
    return frozenset(found)


def end_action(row: CheckpointRow, now: float) -> str:
    """Whether a checkpoint that goes was deleted, or its time was over."""
    return "expire" if row.expires_at is not None and row.expires_at <= now else "delete"


def change_entries(
    row: CheckpointRow, is_public: bool | None, expires_at: float | Literal["never"] | None, now: float
) -> list[AuditEntry]:
    """One entry for each thing that was changed."""
    entries: list[AuditEntry] = []
    if is_public is not None:
        entries.append(checkpoint_entry(row, "publish" if is_public else "unpublish", now))
    if expires_at is not None:
        entries.append(checkpoint_entry(row, "ttl_set", now, expires_at=row.expires_at))
    return entries


def _remove(connection: Connection, row: CheckpointRow, now: float) -> None:
    owned = checkpoints.c.tenant_id == row.tenant_id
    connection.execute(delete(checkpoints).where(_is(row.run_id, row.kind, row.name), owned))
    usage.note_end_of_storage(connection, row, now)
    doom_if_unused(connection, row.key)


def owned_checkpoint(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    kind: CheckpointKind,
    name: str,
    *conditions: ColumnElement[bool],
) -> CheckpointRow:
    """The tenant's own, expired or not, that meets the conditions."""
    owned = checkpoints.c.tenant_id == tenant_id
    query = select_rows(CheckpointRow).where(_is(run_id, kind, name), owned, *conditions)
    return one_row(connection, CheckpointRow, query, "checkpoint", str(CheckpointPath(run_id, kind, name)))


def _is(run_id: str, kind: CheckpointKind, name: str) -> ColumnElement[bool]:
    return and_(checkpoints.c.run_id == run_id, checkpoints.c.kind == kind, checkpoints.c.name == name)
