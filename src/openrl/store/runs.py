"""SQL of training runs."""

from sqlalchemy import Connection, Select, func, select, update

from openrl.store.base import Page, RunRow
from openrl.store.rows import first_row, one_row, rows_of, run_values, select_rows
from openrl.store.schema import runs, sessions


def repeated_run(connection: Connection, run: RunRow) -> RunRow | None:
    """The first run with the same session and number, if there is one."""
    query = select_rows(RunRow).where(
        runs.c.tenant_id == run.spec.tenant_id,
        runs.c.session_id == run.session_id,
        runs.c.model_seq_id == run.model_seq_id,
    )
    return first_row(connection, RunRow, query)


def insert_run(connection: Connection, run: RunRow) -> None:
    """Add a run that is not there."""
    connection.execute(runs.insert(), run_values(run))


def get_run(connection: Connection, tenant_id: str, run_id: str) -> RunRow:
    """One run of a tenant."""
    query = select_rows(RunRow).where(runs.c.run_id == run_id, runs.c.tenant_id == tenant_id)
    return one_row(connection, RunRow, query, "training run", run_id)


def any_run(connection: Connection, run_id: str) -> RunRow:
    """One run of any tenant."""
    return one_row(connection, RunRow, select_rows(RunRow).where(runs.c.run_id == run_id), "training run", run_id)


def list_runs(connection: Connection, tenant_id: str, limit: int, offset: int, project_id: str | None) -> Page[RunRow]:
    """Runs of a tenant, newest first; of one project if it is named."""
    owned = runs.c.tenant_id == tenant_id
    if project_id is not None:
        owned &= runs.c.run_id.in_(runs_of_project(tenant_id, project_id))
    newest = select_rows(RunRow).where(owned).order_by(runs.c.created_at.desc(), runs.c.run_id.desc())
    count = connection.scalar(select(func.count()).select_from(runs).where(owned)) or 0
    return Page(rows_of(connection, RunRow, newest.limit(limit).offset(offset)), count)


def runs_of_project(tenant_id: str, project_id: str) -> Select[tuple[str]]:
    """Ids of the runs whose sessions are in a project."""
    members = select(sessions.c.session_id).where(
        sessions.c.tenant_id == tenant_id, sessions.c.project_id == project_id
    )
    return select(runs.c.run_id).where(runs.c.tenant_id == tenant_id, runs.c.session_id.in_(members))


def runs_of_session(connection: Connection, tenant_id: str, session_id: str) -> tuple[RunRow, ...]:
    """Runs that a session created, in its own order."""
    query = select_rows(RunRow).where(runs.c.tenant_id == tenant_id, runs.c.session_id == session_id)
    return rows_of(connection, RunRow, query.order_by(runs.c.model_seq_id))


def live_runs(connection: Connection) -> tuple[RunRow, ...]:
    """Runs of all tenants that are not closed, oldest first."""
    query = select_rows(RunRow).where(~runs.c.is_closed).order_by(runs.c.created_at, runs.c.run_id)
    return rows_of(connection, RunRow, query)


def mark_closed(connection: Connection, run_id: str) -> None:
    """Take no more requests for a run."""
    connection.execute(update(runs).where(runs.c.run_id == run_id).values(is_closed=True))


def record_snapshot(connection: Connection, run_id: str, seq_id: int, key: str, size_bytes: int) -> None:
    """Point a run at a snapshot unless it has one as new."""
    if any_run(connection, run_id).snapshot_seq_id < seq_id:
        newer = update(runs).where(runs.c.run_id == run_id)
        connection.execute(newer.values(snapshot_seq_id=seq_id, snapshot_key=key, snapshot_bytes=size_bytes))
