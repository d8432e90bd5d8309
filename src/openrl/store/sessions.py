"""SQL of sessions."""

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from openrl.errors import SessionEnded
from openrl.store import projects
from openrl.store.base import Page, SessionRow, SessionState
from openrl.store.rows import first_row, one_row, rows_of, select_rows, session_values
from openrl.store.schema import sessions


def create_session(connection: Connection, session: SessionRow) -> SessionRow:
    """The session as stored: the first one with its idempotency key, if it has one."""
    found = _repeated(connection, session)
    if found is not None:
        return found
    projects.have_project(connection, session.tenant_id, session.project_id, session.created_at)
    connection.execute(sessions.insert(), session_values(session))
    return session


def get_session(connection: Connection, tenant_id: str, session_id: str) -> SessionRow:
    """One session of a tenant."""
    query = select_rows(SessionRow).where(_is(tenant_id, session_id))
    return one_row(connection, SessionRow, query, "session", session_id)


def list_sessions(
    connection: Connection, tenant_id: str, limit: int, offset: int, project_id: str | None
) -> Page[SessionRow]:
    """Sessions of a tenant, newest first; of one project if it is named."""
    owned = sessions.c.tenant_id == tenant_id
    if project_id is not None:
        owned &= sessions.c.project_id == project_id
    newest = select_rows(SessionRow).where(owned).order_by(sessions.c.created_at.desc(), sessions.c.session_id.desc())
    count = connection.scalar(select(func.count()).select_from(sessions).where(owned)) or 0
    return Page(rows_of(connection, SessionRow, newest.limit(limit).offset(offset)), count)


def heartbeat(connection: Connection, tenant_id: str, session_id: str, now: float) -> None:
    """Note a sign of life of an active session."""
    session = get_session(connection, tenant_id, session_id)
    if session.state != "active":
        raise SessionEnded.of(session_id, session.state, session.end_reason)
    connection.execute(update(sessions).where(_is(tenant_id, session_id)).values(last_heartbeat_at=now))


def end_session(connection: Connection, tenant_id: str, session_id: str, state: SessionState, reason: str) -> None:
    """End an active session; one that has ended stays as it was."""
    if get_session(connection, tenant_id, session_id).state == "active":
        ending = update(sessions).where(_is(tenant_id, session_id))
        connection.execute(ending.values(state=state, end_reason=reason))


def sessions_silent_since(connection: Connection, before: float) -> tuple[SessionRow, ...]:
    """Active sessions of all tenants, the longest silent first."""
    query = (
        select_rows(SessionRow)
        .where(sessions.c.state == "active", sessions.c.last_heartbeat_at < before)
        .order_by(sessions.c.last_heartbeat_at, sessions.c.session_id)
    )
    return rows_of(connection, SessionRow, query)


def _is(tenant_id: str, session_id: str) -> ColumnElement[bool]:
    return and_(sessions.c.session_id == session_id, sessions.c.tenant_id == tenant_id)


def _repeated(connection: Connection, session: SessionRow) -> SessionRow | None:
    if session.idempotency_key is None:
        return None
    query = select_rows(SessionRow).where(
        sessions.c.tenant_id == session.tenant_id, sessions.c.idempotency_key == session.idempotency_key
    )
    return first_row(connection, SessionRow, query)
