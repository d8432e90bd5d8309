"""SQL of which sessions use which custom losses."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, exists, or_, select, text

from openrl.store.schema import loss_uses, runs, sessions

# SQLite and PostgreSQL spell it alike.
_NOTE = text(
    "INSERT INTO loss_uses (key, tenant_id, session_id, used_at) VALUES (:key, :tenant_id, :session_id, :used_at) "
    "ON CONFLICT (key, session_id) DO UPDATE SET used_at = excluded.used_at"
)


def note(connection: Connection, key: str, tenant_id: str, session_id: str, now: float) -> None:
    """A session has created or called the loss under a key."""
    values = {"key": key, "tenant_id": tenant_id, "session_id": session_id, "used_at": now}
    connection.execute(_NOTE, values)


def in_use(connection: Connection, since: float) -> frozenset[str]:
    """Keys used since then, or by sessions that can still use them."""
    is_active = exists().where(
        sessions.c.session_id == loss_uses.c.session_id,
        sessions.c.tenant_id == loss_uses.c.tenant_id,
        sessions.c.state == "active",
    )
    has_run = exists().where(
        runs.c.tenant_id == loss_uses.c.tenant_id, runs.c.session_id == loss_uses.c.session_id, ~runs.c.is_closed
    )
    query = select(loss_uses.c.key).where(or_(loss_uses.c.used_at >= since, is_active, has_run))
    return frozenset(connection.scalars(query.distinct()))


def forget(connection: Connection, keys: Sequence[str]) -> None:
    """The losses under these keys are deleted."""
    connection.execute(delete(loss_uses).where(loss_uses.c.key.in_(keys)))
