"""SQL of what workers must be there for, and of what they got through."""

from collections.abc import Iterable

from sqlalchemy import Connection, Executable, case, distinct, func, select

from openrl.store.cluster import Demand, HourOfWork, Side
from openrl.store.ledger import UsageKind
from openrl.store.schema import IS_QUEUED, requests, runs, samplers, sessions, usage

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


def read_work(connection: Connection, first_hour: int, end_hour: int) -> tuple[HourOfWork, ...]:
    """Of all tenants."""
    counted = connection.execute(
        select(usage.c.base_model, usage.c.kind, usage.c.hour, func.sum(usage.c.amount), func.sum(usage.c.busy_us))
        .where(usage.c.hour >= first_hour, usage.c.hour < end_hour)
        .group_by(usage.c.base_model, usage.c.kind, usage.c.hour)
    )
    return work_of((model, kind, hour, int(amount), int(busy_us)) for model, kind, hour, amount, busy_us in counted)


def work_of(counted: Iterable[tuple[str, UsageKind, int, int, int]]) -> tuple[HourOfWork, ...]:
    """Of usage: base model, kind, hour, amount and microseconds. Saves have no tokens."""
    sums: dict[tuple[str, Side, int], tuple[int, int]] = {}
    for base_model, kind, hour, amount, busy_us in counted:
        if kind != "checkpoint":
            key: tuple[str, Side, int] = (base_model, "train" if kind == "training" else "sample", hour)
            tokens, us = sums.get(key, (0, 0))
            sums[key] = (tokens + amount, us + busy_us)
    return tuple(HourOfWork(*key, tokens, us / 1e6) for key, (tokens, us) in sorted(sums.items()))


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
