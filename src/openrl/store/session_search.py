"""Which sessions a search finds: SQL narrows, and one plain function decides for both stores."""

from sqlalchemy import Connection, and_, func, or_, select, tuple_

from openrl.protocol.metadata import show_metadata
from openrl.store.base import SessionRow
from openrl.store.ledger import SessionQuery, SessionSummary
from openrl.store.projects import check_projects, is_kept
from openrl.store.rows import rows_of, select_rows
from openrl.store.schema import checkpoints, runs, sessions

_BATCH = 500


def matches(query: SessionQuery, session: SessionRow) -> bool:
    """Whether a session of the query's tenant is what the query asks for; its cursor is not looked at."""
    return (
        _is_named(query, session)
        and (query.project_ids is None or session.project_id in query.project_ids)
        and _has_metadata(query, session)
        and _has_status(query, session)
    )


def search(connection: Connection, query: SessionQuery, now: float) -> tuple[SessionSummary, ...]:
    """Matching sessions, newest first."""
    check_projects(connection, query.tenant_id, query.project_ids or ())
    found: list[SessionRow] = []
    after = _exact_cursor(connection, query)
    while len(found) < query.limit:
        batch = _next_batch(connection, query, after)
        found.extend(row for row in batch if matches(query, row))
        if len(batch) < _BATCH:
            break
        after = (batch[-1].created_at, batch[-1].session_id)
    return _summaries(connection, found[: query.limit], now)


def summary(session: SessionRow, num_checkpoints: int, checkpoint_bytes: int) -> SessionSummary:
    """A session as searches show it."""
    return SessionSummary(
        session.session_id,
        session.created_at,
        session.project_id,
        session.state,
        session.end_reason,
        session.display_name,
        session.user_metadata,
        num_checkpoints,
        checkpoint_bytes,
    )


def _is_named(query: SessionQuery, session: SessionRow) -> bool:
    if query.session_id is None and not query.display_words:
        return True
    name = (session.display_name or "").casefold()
    has_words = bool(query.display_words) and all(word.casefold() in name for word in query.display_words)
    return has_words or session.session_id == query.session_id


def _has_metadata(query: SessionQuery, session: SessionRow) -> bool:
    shown = show_metadata(session.user_metadata) or {}
    return all(shown.get(key) == value for key, value in query.user_metadata)


def _has_status(query: SessionQuery, session: SessionRow) -> bool:
    if query.statuses is None:
        return True
    reason = (session.end_reason or "").partition(":")[0]
    return any(
        status.state == session.state and (status.reasons is None or reason in status.reasons)
        for status in query.statuses
    )


def _exact_cursor(connection: Connection, query: SessionQuery) -> tuple[float, str] | None:
    """Cursors carry microseconds, rows more: the row that the cursor names tells its time exactly."""
    if query.after is None:
        return None
    at, session_id = query.after
    stored = connection.scalar(
        select(sessions.c.created_at).where(
            sessions.c.session_id == session_id, sessions.c.tenant_id == query.tenant_id
        )
    )
    return (at if stored is None else stored, session_id)


def _next_batch(connection: Connection, query: SessionQuery, after: tuple[float, str] | None) -> tuple[SessionRow, ...]:
    wanted = select_rows(SessionRow).where(sessions.c.tenant_id == query.tenant_id)
    if query.session_id is not None and not query.display_words:
        wanted = wanted.where(sessions.c.session_id == query.session_id)
    if query.project_ids is not None:
        wanted = wanted.where(sessions.c.project_id.in_(query.project_ids))
    if after is not None:
        at, session_id = after
        earlier = and_(sessions.c.created_at == at, sessions.c.session_id < session_id)
        wanted = wanted.where(or_(sessions.c.created_at < at, earlier))
    newest = wanted.order_by(sessions.c.created_at.desc(), sessions.c.session_id.desc())
    return rows_of(connection, SessionRow, newest.limit(_BATCH))


def _summaries(connection: Connection, found: list[SessionRow], now: float) -> tuple[SessionSummary, ...]:
    if not found:
        return ()
    owned = [(row.tenant_id, row.session_id) for row in found]
    sizes = connection.execute(
        select(runs.c.session_id, func.count(), func.sum(checkpoints.c.size_bytes))
        .join(checkpoints, checkpoints.c.run_id == runs.c.run_id)
        .where(tuple_(runs.c.tenant_id, runs.c.session_id).in_(owned), is_kept(now))
        .group_by(runs.c.session_id)
    )
    saved = {row[0]: (int(row[1]), int(row[2])) for row in sizes}
    return tuple(summary(row, *saved.get(row.session_id, (0, 0))) for row in found)
