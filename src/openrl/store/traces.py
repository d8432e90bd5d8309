"""SQL of what a session's requests did when."""

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from openrl.store.ledger import TracedRequest
from openrl.store.schema import requests, runs, samplers

_COLUMNS = tuple(
    requests.c[name]
    for name in (
        "request_id", "kind", "seq_id", "run_id", "sampler_id", "state", "created_at", "finished_at",
        "wall_s", "busy_s", "used_tokens", "sampled_tokens", "cached_tokens",
    )
)  # fmt: skip
_BATCH = 500


def trace_version(connection: Connection, tenant_id: str, session_id: str) -> tuple[int, int]:
    """How many requests there are, and how many have ended."""
    total = finished = 0
    for wanted in _conditions(connection, tenant_id, session_id):
        counts = connection.execute(select(func.count(), func.count(requests.c.finished_at)).where(wanted)).one()
        total, finished = total + counts[0], finished + counts[1]
    return total, finished


def trace(connection: Connection, tenant_id: str, session_id: str, limit: int) -> tuple[TracedRequest, ...]:
    """The newest requests of a session, oldest first."""
    found: list[TracedRequest] = []
    for wanted in _conditions(connection, tenant_id, session_id):
        query = select(*_COLUMNS).where(wanted).order_by(requests.c.position.desc()).limit(limit)
        found.extend(TracedRequest(*row) for row in connection.execute(query))
    return tuple(sorted(found, key=lambda request: (request.created_at, request.seq_id))[-limit:])


def _conditions(connection: Connection, tenant_id: str, session_id: str) -> list[ColumnElement[bool]]:
    """The session's requests by their retry identities, which are indexed; ';' sorts right after ':'."""
    run_ids = connection.scalars(
        select(runs.c.run_id).where(runs.c.tenant_id == tenant_id, runs.c.session_id == session_id)
    )
    sampler_ids = connection.scalars(
        select(samplers.c.sampler_id).where(samplers.c.tenant_id == tenant_id, samplers.c.session_id == session_id)
    )
    names = [f"run:{run_id}" for run_id in run_ids] + [f"sampler:{sampler_id}" for sampler_id in sampler_ids]
    batches = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]
    return [and_(requests.c.tenant_id == tenant_id, or_(*map(_belongs_to, batch))) for batch in batches]


def _belongs_to(name: str) -> ColumnElement[bool]:
    return and_(requests.c.dedupe_key >= f"{name}:", requests.c.dedupe_key < f"{name};")
