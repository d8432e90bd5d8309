"""SQL of the load of a stretch of time: sessions, and what they asked for when."""

from collections.abc import Iterable

from sqlalchemy import Connection, and_, or_, select

from openrl.store.ledger import RequestLoad, SessionLoad
from openrl.store.schema import requests, sessions

_REQUEST = tuple(
    requests.c[name]
    for name in (
        "session_id", "kind", "base_model", "run_id", "created_at", "finished_at",
        "num_tokens", "used_tokens", "busy_s",
    )
)  # fmt: skip
_SESSION = tuple(sessions.c[name] for name in ("session_id", "tenant_id", "created_at", "state", "last_heartbeat_at"))


def load(connection: Connection, since: float, until: float) -> tuple[SessionLoad, ...]:
    """Of all tenants. No index helps: it reads all rows of both tables once."""
    was_open = or_(sessions.c.state == "active", sessions.c.last_heartbeat_at >= since)
    found = connection.execute(select(*_SESSION).where(and_(sessions.c.created_at < until, was_open)))
    asked = connection.execute(
        select(*_REQUEST)
        .where(requests.c.created_at >= since, requests.c.created_at < until)
        .order_by(requests.c.position)
    )
    asked_by_session: dict[str, list[RequestLoad]] = {}
    for session_id, *fields in asked:
        asked_by_session.setdefault(session_id, []).append(RequestLoad(*fields))
    return in_order(
        SessionLoad(
            row.session_id,
            row.tenant_id,
            row.created_at,
            None if row.state == "active" else row.last_heartbeat_at,
            tuple(asked_by_session.get(row.session_id, ())),
        )
        for row in found
    )


def in_order(loads: Iterable[SessionLoad]) -> tuple[SessionLoad, ...]:
    """By their begin."""
    return tuple(sorted(loads, key=lambda each: (each.created_at, each.session_id)))
