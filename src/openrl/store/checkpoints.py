"""SQL of checkpoints. `now` decides which ones have expired."""

from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from openrl.protocol.runs import CheckpointKind
from openrl.store.base import CheckpointRow, Page
from openrl.store.rows import one_row, plain_values, rows_of, select_rows
from openrl.store.schema import checkpoints


def put_checkpoint(connection: Connection, checkpoint: CheckpointRow) -> None:
    """Insert a checkpoint in place of one with the same run, kind and name."""
    connection.execute(delete(checkpoints).where(_is(checkpoint.run_id, checkpoint.kind, checkpoint.name)))
    connection.execute(checkpoints.insert(), plain_values(checkpoint))


def get_checkpoint(
    connection: Connection, tenant_id: str, run_id: str, kind: CheckpointKind, name: str, now: float
) -> CheckpointRow:
    """The tenant's own, or anybody's that is public."""
    visible = or_(checkpoints.c.tenant_id == tenant_id, checkpoints.c.is_public)
    query = select_rows(CheckpointRow).where(_is(run_id, kind, name), visible, _is_fresh(now))
    return one_row(connection, CheckpointRow, query, _title(run_id, kind, name))


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


def expired_checkpoints(connection: Connection, now: float) -> tuple[CheckpointRow, ...]:
    """Checkpoints of all tenants past their expiry, the longest expired first."""
    order = (checkpoints.c.expires_at, checkpoints.c.run_id, checkpoints.c.kind, checkpoints.c.name)
    query = select_rows(CheckpointRow).where(checkpoints.c.expires_at <= now).order_by(*order)
    return rows_of(connection, CheckpointRow, query)


def delete_checkpoint(
    connection: Connection, tenant_id: str, run_id: str, kind: CheckpointKind, name: str
) -> CheckpointRow:
    """Remove the tenant's own, expired or not."""
    found = _owned(connection, tenant_id, run_id, kind, name)
    connection.execute(delete(checkpoints).where(_is(run_id, kind, name)))
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
    _owned(connection, tenant_id, run_id, kind, name, _is_fresh(now))
    changes: dict[str, Any] = {}
    if is_public is not None:
        changes["is_public"] = is_public
    if expires_at is not None:
        changes["expires_at"] = None if expires_at == "never" else expires_at
    if changes:
        connection.execute(update(checkpoints).where(_is(run_id, kind, name)).values(changes))
    return _owned(connection, tenant_id, run_id, kind, name)


def _owned(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    kind: CheckpointKind,
    name: str,
    *conditions: ColumnElement[bool],
) -> CheckpointRow:
    owned = checkpoints.c.tenant_id == tenant_id
    query = select_rows(CheckpointRow).where(_is(run_id, kind, name), owned, *conditions)
    return one_row(connection, CheckpointRow, query, _title(run_id, kind, name))


def _is(run_id: str, kind: CheckpointKind, name: str) -> ColumnElement[bool]:
    return and_(checkpoints.c.run_id == run_id, checkpoints.c.kind == kind, checkpoints.c.name == name)


def _is_fresh(now: float) -> ColumnElement[bool]:
    return or_(checkpoints.c.expires_at.is_(None), checkpoints.c.expires_at > now)


def _title(run_id: str, kind: CheckpointKind, name: str) -> str:
    return f"checkpoint {kind}/{name} of training run {run_id!r}"
