"""SQL of checkpoints. `now` decides which ones have expired."""

from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import CheckpointKind
from openrl.store import audit, runs, usage
from openrl.store.base import CheckpointRow, Page
from openrl.store.ledger import AuditEntry
from openrl.store.rows import one_row, plain_values, rows_of, select_rows
from openrl.store.schema import checkpoints, doomed_objects

EXPIRED_BATCH = 1000  # rows in one transaction, so that arrivals never wait long behind a large clean-up


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
    return connection.scalar(select(checkpoints.c.key).where(_is(run_id, kind, name), _is_fresh(now))) is None


def is_object_used(connection: Connection, key: str) -> bool:
    """Whether a checkpoint has its files under this key."""
    return connection.scalar(select(checkpoints.c.key).where(checkpoints.c.key == key).limit(1)) is not None


def doom_if_unused(connection: Connection, key: str) -> None:
    """Note that the files under a key must be deleted, unless a checkpoint has them."""
    if not is_object_used(connection, key) and not list_doomed(connection, key):
        connection.execute(doomed_objects.insert(), {"key": key})


def list_doomed(connection: Connection, key: str | None) -> tuple[str, ...]:
    """Keys whose files must be deleted; only `key`, if given."""
    query = select(doomed_objects.c.key).order_by(doomed_objects.c.key)
    return tuple(connection.scalars(query if key is None else query.where(doomed_objects.c.key == key)))


def forget_doomed(connection: Connection, key: str) -> None:
    """The files under a key are deleted."""
    connection.execute(delete(doomed_objects).where(doomed_objects.c.key == key))


def get_checkpoint(
    connection: Connection, tenant_id: str, run_id: str, kind: CheckpointKind, name: str, now: float
) -> CheckpointRow:
    """The tenant's own, or anybody's that is public."""
    visible = or_(checkpoints.c.tenant_id == tenant_id, checkpoints.c.is_public)
    query = select_rows(CheckpointRow).where(_is(run_id, kind, name), visible, _is_fresh(now))
    return one_row(connection, CheckpointRow, query, "checkpoint", str(CheckpointPath(run_id, kind, name)))


def list_checkpoints(
    connection: Connection, tenant_id: str, limit: int, offset: int, run_id: str | None, now: float
) -> Page[CheckpointRow]:
    """The tenant's own, newest first."""
    wanted = and_(checkpoints.c.tenant_id == tenant_id, _is_fresh(now))
    if run_id is not None:
        wanted = and_(wanted, checkpoints.c.run_id == run_id)
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
    owned_checkpoint(connection, tenant_id, run_id, kind, name, _is_fresh(now))
    changes: dict[str, Any] = {}
    if is_public is not None:
        changes["is_public"] = is_public
    if expires_at is not None:
        changes["expires_at"] = None if expires_at == "never" else expires_at
    if changes:
        connection.execute(update(checkpoints).where(_is(run_id, kind, name)).values(changes))
    changed = owned_checkpoint(connection, tenant_id, run_id, kind, name)
    for entry in change_entries(changed, is_public, expires_at, now):
        audit.record(connection, tenant_id, entry)
    return changed


def checkpoint_entry(row: CheckpointRow, action: str, now: float, **details: Any) -> AuditEntry:
    """What the audit log says when something is done to a checkpoint."""
    path = str(CheckpointPath(row.run_id, row.kind, row.name))
    about = {"training_run_id": row.run_id, "tinker_path": path, "size_bytes": row.size_bytes, **details}
    return AuditEntry(now, "checkpoints", f"checkpoint_{action}", about)


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
    connection.execute(delete(checkpoints).where(_is(row.run_id, row.kind, row.name)))
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


def _is_fresh(now: float) -> ColumnElement[bool]:
    return or_(checkpoints.c.expires_at.is_(None), checkpoints.c.expires_at > now)
