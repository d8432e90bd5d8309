"""SQL of usage: what ran, counted by hour, and how long checkpoints were held."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, func, select, text

from openrl.store.base import CheckpointRow, FinishedRequest, RequestRow
from openrl.store.ledger import HOUR_S, StorageSpan, UsageKind, UsageReport, UsageRow
from openrl.store.schema import checkpoints, past_checkpoints, runs, sessions, usage

# SQLite and PostgreSQL spell it alike.
_ADD = text(
    "INSERT INTO usage (tenant_id, hour, session_id, base_model, kind, amount) "
    "VALUES (:tenant_id, :hour, :session_id, :base_model, :kind, :amount) "
    "ON CONFLICT (tenant_id, hour, session_id, base_model, kind) DO UPDATE SET amount = usage.amount + excluded.amount"
)


class UsageKey(NamedTuple):
    """Where an amount is added up; a tuple, as every request that ends is hashed by one."""

    tenant_id: str
    hour: int
    session_id: str
    base_model: str
    kind: UsageKind


def amounts_of(row: RequestRow, end: FinishedRequest) -> tuple[tuple[UsageKind, int], ...]:
    """What a request used; one that failed or was cancelled is not counted."""
    if end.state != "done":
        return ()
    if row.kind in ("forward", "forward_backward"):
        return (("training", end.num_tokens),)
    if row.kind == "sample":
        prefill = max(end.num_tokens - end.num_sampled_tokens, 0)
        sampled, cached = end.num_sampled_tokens, end.num_cached_tokens
        return (("prefill", prefill), ("sample", sampled), ("cached_prefill", cached))
    return (("checkpoint", 1),) if end.checkpoint is not None else ()


def add_up(ends: Iterable[tuple[RequestRow, FinishedRequest]]) -> Counter[UsageKey]:
    """Amounts of many requests, by key."""
    amounts: Counter[UsageKey] = Counter()
    for row, end in ends:
        hour = int(end.finished_at // HOUR_S)
        for kind, amount in amounts_of(row, end):
            if amount:
                amounts[UsageKey(row.tenant_id, hour, row.session_id, row.base_model, kind)] += amount
    return amounts


def count(connection: Connection, ends: Iterable[tuple[RequestRow, FinishedRequest]]) -> None:
    """Add what requests used, with one statement for each key."""
    amounts = add_up(ends)
    if amounts:
        connection.execute(
            _ADD,
            [{**key._asdict(), "amount": amount} for key, amount in amounts.items()],
        )


def report(connection: Connection, tenant_id: str, first_hour: int, end_hour: int) -> UsageReport:
    """What ran in some hours."""
    wanted = and_(usage.c.tenant_id == tenant_id, usage.c.hour >= first_hour, usage.c.hour < end_hour)
    of_session = and_(sessions.c.session_id == usage.c.session_id, sessions.c.tenant_id == tenant_id)
    rows = connection.execute(
        select(
            usage.c.hour,
            usage.c.session_id,
            usage.c.base_model,
            usage.c.kind,
            usage.c.amount,
            func.coalesce(sessions.c.project_id, "default"),
        )
        .outerjoin(sessions, of_session)
        .where(wanted)
        .order_by(usage.c.hour, usage.c.amount.desc(), usage.c.session_id, usage.c.base_model, usage.c.kind)
    )
    named = select(sessions.c.session_id, sessions.c.user_metadata).where(
        sessions.c.tenant_id == tenant_id, sessions.c.session_id.in_(select(usage.c.session_id).where(wanted))
    )
    metadata = {row.session_id: row.user_metadata for row in connection.execute(named)}
    return UsageReport(tuple(UsageRow(*row) for row in rows), metadata)


def note_end_of_storage(connection: Connection, row: CheckpointRow, now: float) -> None:
    """Remember what a checkpoint that goes has held; nothing is held past its expiry."""
    ended_at = now if row.expires_at is None else min(now, row.expires_at)
    values = {"tenant_id": row.tenant_id, "run_id": row.run_id, "size_bytes": row.size_bytes}
    connection.execute(past_checkpoints.insert().values(created_at=row.created_at, ended_at=ended_at, **values))


def storage(connection: Connection, tenant_id: str, since: float, until: float, now: float) -> tuple[StorageSpan, ...]:
    """Checkpoints held at some time between the bounds."""
    held_until = case((checkpoints.c.expires_at <= now, checkpoints.c.expires_at), else_=None)
    spans: list[StorageSpan] = []
    for table, ended_at in ((checkpoints, held_until), (past_checkpoints, past_checkpoints.c.ended_at)):
        rows = connection.execute(
            select(
                func.coalesce(sessions.c.project_id, "default"),
                func.coalesce(runs.c.base_model, ""),
                table.c.size_bytes,
                table.c.created_at,
                ended_at,
            )
            .select_from(table)
            .outerjoin(runs, runs.c.run_id == table.c.run_id)
            .outerjoin(sessions, sessions.c.session_id == runs.c.session_id)
            .where(table.c.tenant_id == tenant_id, table.c.created_at < until)
            .where(ended_at.is_(None) | (ended_at > since))
            .order_by(table.c.created_at)
        )
        spans.extend(StorageSpan(*row) for row in rows)
    return tuple(spans)
