"""SQL of projects: what sessions are sorted into."""

from sqlalchemy import ColumnElement, Connection, Subquery, and_, func, or_, select, update

from openrl.errors import NotFound
from openrl.store import audit
from openrl.store.ledger import AuditEntry, ProjectSummary
from openrl.store.schema import checkpoints, projects, runs, sessions


def have_project(connection: Connection, tenant_id: str, project_id: str, now: float) -> None:
    """Make the project unless the tenant has it."""
    if not _has_project(connection, tenant_id, project_id):
        connection.execute(projects.insert().values(tenant_id=tenant_id, project_id=project_id, created_at=now))
        entry = AuditEntry(now, "projects", "project_create", {"project_id": project_id})
        audit.record(connection, tenant_id, entry)


def check_projects(connection: Connection, tenant_id: str, project_ids: tuple[str, ...]) -> None:
    """Raises NotFound naming the first that the tenant does not have."""
    for project_id in project_ids:
        if not _has_project(connection, tenant_id, project_id):
            raise NotFound.of("project", project_id)


def assign_project(connection: Connection, tenant_id: str, session_id: str, project_id: str, now: float) -> None:
    """Move a session of the tenant."""
    at = and_(sessions.c.tenant_id == tenant_id, sessions.c.session_id == session_id)
    found = connection.execute(select(sessions.c.project_id).where(at)).first()
    if found is None:
        raise NotFound.of("session", session_id)
    if found.project_id == project_id:
        return
    have_project(connection, tenant_id, project_id, now)
    connection.execute(update(sessions).where(at).values(project_id=project_id))
    audit.record(connection, tenant_id, move_entry(session_id, found.project_id, project_id, now))


def move_entry(session_id: str, source: str, destination: str, now: float) -> AuditEntry:
    """What the audit log says when a session moves."""
    details = {"session_id": session_id, "from_project_id": source, "project_id": destination}
    return AuditEntry(now, "projects", "session_project_set", details)


def list_projects(connection: Connection, tenant_id: str, now: float) -> tuple[ProjectSummary, ...]:
    """Projects of a tenant with what is in them, oldest first."""
    owned = sessions.c.tenant_id == tenant_id
    num_sessions = select(sessions.c.project_id, func.count().label("num")).where(owned)
    in_session = and_(sessions.c.session_id == runs.c.session_id, sessions.c.tenant_id == runs.c.tenant_id)
    num_runs = select(sessions.c.project_id, func.count().label("num")).join(runs, in_session).where(owned)
    saved = (
        select(
            sessions.c.project_id,
            func.count().label("num"),
            func.sum(checkpoints.c.size_bytes).label("size"),
        )
        .join(runs, in_session)
        .join(checkpoints, checkpoints.c.run_id == runs.c.run_id)
        .where(owned, is_kept(now))
    )
    s, r, c = (query.group_by(sessions.c.project_id).subquery() for query in (num_sessions, num_runs, saved))
    rows = connection.execute(
        select(projects.c.project_id, projects.c.created_at, s.c.num, r.c.num, c.c.num, c.c.size)
        .outerjoin(s, _same(s))
        .outerjoin(r, _same(r))
        .outerjoin(c, _same(c))
        .where(projects.c.tenant_id == tenant_id)
        .order_by(projects.c.created_at, projects.c.project_id)
    )
    return tuple(ProjectSummary(row[0], row[1], *(int(value or 0) for value in row[2:])) for row in rows)


def is_kept(now: float) -> ColumnElement[bool]:
    """Whether a checkpoint has not expired."""
    return or_(checkpoints.c.expires_at.is_(None), checkpoints.c.expires_at > now)


def _same(counted: Subquery) -> ColumnElement[bool]:
    return counted.c.project_id == projects.c.project_id


def _has_project(connection: Connection, tenant_id: str, project_id: str) -> bool:
    query = select(projects.c.created_at).where(projects.c.tenant_id == tenant_id, projects.c.project_id == project_id)
    return connection.scalar(query) is not None
