"""SQL of what workers must be there for."""

from collections.abc import Iterable

from sqlalchemy import Connection, Executable, case, distinct, func, select

from openrl.store.cluster import Demand, Side
from openrl.store.schema import IS_QUEUED, requests, runs, samplers, sessions

_SIDE = case((requests.c.kind == "sample", "sample"), else_="train")
_QUEUED = (
    select(
        requests.c.base_model,
        requests.c.tenant_id,
        _SIDE,
        func.count(),
        func.sum(requests.c.num_tokens),
        func.min(requests.c.created_at),
    )
    .where(IS_QUEUED)
    .group_by(requests.c.base_model, requests.c.tenant_id, _SIDE)
)
_LIVE_RUNS = (
    select(runs.c.base_model, runs.c.tenant_id, func.count())
    .where(~runs.c.is_closed)
    .group_by(runs.c.base_model, runs.c.tenant_id)
)
_LIVE_SAMPLERS = (
    select(samplers.c.base_model, samplers.c.tenant_id, func.count(distinct(samplers.c.session_id)))
    .select_from(sessions)
    .join(samplers, (samplers.c.tenant_id == sessions.c.tenant_id) & (samplers.c.session_id == sessions.c.session_id))
    .where(sessions.c.state == "active")
    .group_by(samplers.c.base_model, samplers.c.tenant_id)
)


def read_demand(connection: Connection) -> tuple[Demand, ...]:
    """Of all tenants."""
    queued = (
        Demand(base_model, tenant_id, side, int(count), int(tokens), oldest_at)
        for base_model, tenant_id, side, count, tokens, oldest_at in connection.execute(_QUEUED)
    )
    trained = _live(connection, _LIVE_RUNS, "train")
    sampled = _live(connection, _LIVE_SAMPLERS, "sample")
    return add_up([*queued, *trained, *sampled])


def add_up(demands: Iterable[Demand]) -> tuple[Demand, ...]:
    """One of each base model, tenant and side, in order."""
    sums: dict[tuple[str, str, str], Demand] = {}
    for each in demands:
        key = (each.base_model, each.tenant_id, each.side)
        sums[key] = _sum(sums[key], each) if key in sums else each
    return tuple(sums[key] for key in sorted(sums))


def _live(connection: Connection, query: Executable, side: Side) -> list[Demand]:
    return [
        Demand(base_model, tenant_id, side, num_live=int(count))
        for base_model, tenant_id, count in connection.execute(query)
    ]


def _sum(a: Demand, b: Demand) -> Demand:
    oldest = [at for at in (a.oldest_at, b.oldest_at) if at is not None]
    return Demand(
        a.base_model,
        a.tenant_id,
        a.side,
        a.num_requests + b.num_requests,
        a.num_tokens + b.num_tokens,
        min(oldest, default=None),
        a.num_live + b.num_live,
    )
