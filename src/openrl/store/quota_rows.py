"""SQL of quotas: what was set, and what is in use."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Executable, Select, and_, delete, func, select

from openrl.errors import NotFound
from openrl.store import audit
from openrl.store.base import CheckpointRow, RunRow
from openrl.store.identities import Actor
from openrl.store.ledger import DEFAULT_PROJECT
from openrl.store.projects import is_kept
from openrl.store.quotas import (
    LIMIT_NAMES,
    Bound,
    DeviceUse,
    Holding,
    Limits,
    QuotaRow,
    check_bound,
    clear_entry,
    set_entry,
)
from openrl.store.schema import HAS_RUN, IS_QUEUED, checkpoints, quotas, requests, runs, samplers, sessions, usage

PROJECT = func.coalesce(sessions.c.project_id, DEFAULT_PROJECT)


def all_quotas(connection: Connection) -> tuple[QuotaRow, ...]:
    """What was set, by tenant and project."""
    return _rows(connection, select(quotas))


def of_tenant(connection: Connection, tenant_id: str) -> tuple[QuotaRow, ...]:
    """What was set for one tenant and its projects."""
    return _rows(connection, select(quotas).where(quotas.c.tenant_id == tenant_id))


def put(connection: Connection, row: QuotaRow, by: Actor) -> None:
    """Set in place of what there was."""
    connection.execute(delete(quotas).where(_is(row.tenant_id, row.project_id)))
    about = {"tenant_id": row.tenant_id, "project_id": row.project_id, "weight": row.weight}
    connection.execute(quotas.insert().values(**about, **asdict(row.limits), changed_at=row.changed_at))
    audit.record(connection, row.tenant_id, set_entry(row, by))


def clear(connection: Connection, tenant_id: str, project_id: str, now: float, by: Actor) -> None:
    """Forget what was set."""
    if not connection.execute(delete(quotas).where(_is(tenant_id, project_id))).rowcount:
        raise no_quota(tenant_id, project_id)
    audit.record(connection, tenant_id, clear_entry(project_id, now, by))


def no_quota(tenant_id: str, project_id: str) -> NotFound:
    """The error of clearing what was not set."""
    return NotFound.of("quota of project" if project_id else "quota of tenant", project_id or tenant_id)


def holdings(connection: Connection, tenant_id: str, now: float) -> tuple[Holding, ...]:
    """Stored bytes and live runs of a tenant, by project."""
    stored: Counter[str] = Counter()
    for query in _stored_queries(tenant_id, now):
        stored.update(_by_project(connection, query))
    live = _by_project(connection, _live_runs(tenant_id))
    return tuple(Holding(name, stored[name], live[name]) for name in sorted(stored.keys() | live.keys()))


def num_queued(connection: Connection, tenant_id: str) -> Mapping[str, int]:
    """Requests of a tenant that have not finished, by project."""
    waiting = select(requests.c.session_id, func.count().label("num")).where(
        IS_QUEUED, requests.c.tenant_id == tenant_id
    )
    by_session = waiting.group_by(requests.c.session_id).subquery()
    of_session = sessions.c.session_id == by_session.c.session_id
    query = select(PROJECT, func.sum(by_session.c.num)).select_from(by_session).outerjoin(sessions, of_session)
    return _by_project(connection, query.group_by(PROJECT))


def has_later(connection: Connection, tenant_id: str, run_id: str, seq_id: int) -> bool:
    """Whether an unfinished request of the run has a larger number."""
    later = and_(requests.c.run_id == run_id, HAS_RUN, requests.c.seq_id > seq_id, requests.c.state == "queued")
    owned = requests.c.tenant_id == tenant_id
    return connection.scalar(select(requests.c.position).where(later, owned).limit(1)) is not None


def device_use(connection: Connection, first_hour: int) -> tuple[DeviceUse, ...]:
    """Device time by tenant and project."""
    query = (
        select(usage.c.tenant_id, PROJECT, func.sum(usage.c.busy_us))
        .select_from(usage)
        .outerjoin(sessions, sessions.c.session_id == usage.c.session_id)
        .where(usage.c.hour >= first_hour)
        .group_by(usage.c.tenant_id, PROJECT)
        .order_by(usage.c.tenant_id, PROJECT)
    )
    return tuple(DeviceUse(tenant_id, name, int(busy)) for tenant_id, name, busy in connection.execute(query) if busy)


def check_live_runs(connection: Connection, run: RunRow, bound: Bound) -> None:
    """Raises QuotaReached when one more run would be over the bound."""
    if bound.is_open():
        return
    held = _by_project(connection, _live_runs(run.spec.tenant_id))
    check_bound("live_runs", held, _project(connection, run.session_id), 1, bound)


def check_stored(connection: Connection, copy: CheckpointRow, session_id: str, bound: Bound) -> None:
    """Raises QuotaReached when a checkpoint of a run of this session does not fit."""
    if not bound.is_open():
        held = {each.project_id: each.stored_bytes for each in holdings(connection, copy.tenant_id, copy.created_at)}
        check_bound("stored_bytes", held, _project(connection, session_id), copy.size_bytes, bound)


def project_of_run(connection: Connection, run_id: str) -> str:
    """The project that a run's session is in."""
    session_id = connection.scalar(select(runs.c.session_id).where(runs.c.run_id == run_id))
    return _project(connection, session_id or "")


def _stored_queries(tenant_id: str, now: float) -> tuple[Executable, ...]:
    of_session = sessions.c.session_id == runs.c.session_id
    saved = (
        select(PROJECT, func.sum(checkpoints.c.size_bytes))
        .select_from(checkpoints)
        .outerjoin(runs, runs.c.run_id == checkpoints.c.run_id)
        .outerjoin(sessions, of_session)
        .where(checkpoints.c.tenant_id == tenant_id, is_kept(now))
    )
    snapshots = (
        select(PROJECT, func.sum(runs.c.snapshot_bytes))
        .select_from(runs)
        .outerjoin(sessions, of_session)
        .where(runs.c.tenant_id == tenant_id, ~runs.c.is_closed, runs.c.snapshot_bytes > 0)
    )
    unnamed = (
        select(PROJECT, func.sum(samplers.c.size_bytes))
        .select_from(samplers)
        .join(sessions, sessions.c.session_id == samplers.c.session_id)
        .where(samplers.c.tenant_id == tenant_id, samplers.c.is_ephemeral, sessions.c.state == "active")
    )
    return saved.group_by(PROJECT), snapshots.group_by(PROJECT), unnamed.group_by(PROJECT)


def _live_runs(tenant_id: str) -> Executable:
    of_session = sessions.c.session_id == runs.c.session_id
    live = select(PROJECT, func.count()).select_from(runs).outerjoin(sessions, of_session)
    return live.where(runs.c.tenant_id == tenant_id, ~runs.c.is_closed).group_by(PROJECT)


def _project(connection: Connection, session_id: str) -> str:
    project_id = connection.scalar(select(sessions.c.project_id).where(sessions.c.session_id == session_id))
    return project_id or DEFAULT_PROJECT


def _by_project(connection: Connection, query: Executable) -> Counter[str]:
    rows = connection.execute(query).all()
    return Counter({str(row[0]): int(row[1] or 0) for row in rows})


def _is(tenant_id: str, project_id: str) -> ColumnElement[bool]:
    return and_(quotas.c.tenant_id == tenant_id, quotas.c.project_id == project_id)


def _rows(connection: Connection, query: Select[Any]) -> tuple[QuotaRow, ...]:
    found = connection.execute(query.order_by(quotas.c.tenant_id, quotas.c.project_id))
    return tuple(
        QuotaRow(
            row.tenant_id,
            row.project_id,
            Limits(*(getattr(row, name) for name in LIMIT_NAMES)),
            row.changed_at,
            row.weight,
        )
        for row in found
    )
