"""SQL of usage: what ran and for how long, counted by hour, and how long checkpoints were held."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, func, select, text

from openrl.store.base import CheckpointRow, FinishedRequest, RequestRow
from openrl.store.ledger import DEFAULT_PROJECT, HOUR_S, Spending, StorageSpan, UsageKind, UsageReport, UsageRow, to_us
from openrl.store.schema import checkpoints, past_checkpoints, runs, sessions, usage

# SQLite and PostgreSQL spell it alike.
_ADD = text(
    "INSERT INTO usage (tenant_id, hour, session_id, run_id, base_model, kind, amount, busy_us) "
    "VALUES (:tenant_id, :hour, :session_id, :run_id, :base_model, :kind, :amount, :busy_us) "
    "ON CONFLICT (tenant_id, hour, session_id, run_id, base_model, kind) "
    "DO UPDATE SET amount = usage.amount + excluded.amount, busy_us = usage.busy_us + excluded.busy_us"
)
_OF_SESSION = and_(sessions.c.session_id == usage.c.session_id, sessions.c.tenant_id == usage.c.tenant_id)
_PROJECT = func.coalesce(sessions.c.project_id, DEFAULT_PROJECT)


class UsageKey(NamedTuple):
    """Where an amount is added up; a tuple, as every request that ends is hashed by one."""

    tenant_id: str
    hour: int
    session_id: str
    run_id: str
    base_model: str
    kind: UsageKind


@dataclass(slots=True)
class Used:
    """An amount of one kind, and the device time that it took."""

    amount: int = 0
    busy_us: int = 0


def used_by(row: RequestRow, end: FinishedRequest) -> tuple[tuple[UsageKind, int, int], ...]:
    """What a request used, as kind, amount and device time; of one that failed or was cancelled only the time counts.

    The time of training is that of all its requests but saves: steps, loads.
    """
    is_done = end.state == "done"
    busy_us = to_us(end.busy_s)
    if row.kind == "sample":
        prefill = max(end.num_tokens - end.num_sampled_tokens, 0) * is_done
        sampled, cached = end.num_sampled_tokens * is_done, end.num_cached_tokens * is_done
        return (("prefill", prefill, 0), ("sample", sampled, busy_us), ("cached_prefill", cached, 0))
    if row.kind.startswith("save_"):
        return (("checkpoint", int(is_done and end.checkpoint is not None), busy_us),)
    tokens = end.num_tokens if is_done and row.kind in ("forward", "forward_backward") else 0
    return (("training", tokens, busy_us),)


def add_up(ends: Iterable[tuple[RequestRow, FinishedRequest]]) -> dict[UsageKey, Used]:
    """What many requests used, by key."""
    sums: defaultdict[UsageKey, Used] = defaultdict(Used)
    for row, end in ends:
        hour = int(end.finished_at // HOUR_S)
        for kind, amount, busy_us in used_by(row, end):
            if amount or busy_us:
                run_id = row.run_id or row.source_run_id
                used = sums[UsageKey(row.tenant_id, hour, row.session_id, run_id, row.base_model, kind)]
                used.amount += amount
                used.busy_us += busy_us
    return sums


def count(connection: Connection, ends: Iterable[tuple[RequestRow, FinishedRequest]]) -> None:
    """Add what requests used, with one statement for each key."""
    sums = add_up(ends)
    if sums:
        # In one order everywhere: two transactions that add to the same rows never wait for each other.
        ordered = sorted(sums.items(), key=lambda item: item[0])
        connection.execute(_ADD, [{**key._asdict(), **asdict(used)} for key, used in ordered])


def report(connection: Connection, tenant_id: str, first_hour: int, end_hour: int) -> UsageReport:
    """What ran in some hours, all runs of a session together."""
    wanted = and_(usage.c.tenant_id == tenant_id, usage.c.hour >= first_hour, usage.c.hour < end_hour)
    amount, busy_us = func.sum(usage.c.amount), func.sum(usage.c.busy_us)
    key = (usage.c.hour, usage.c.session_id, usage.c.base_model, usage.c.kind)
    rows = connection.execute(
        select(*key, amount, _PROJECT, busy_us)
        .outerjoin(sessions, _OF_SESSION)
        .where(wanted)
        .group_by(*key, _PROJECT)
        .order_by(usage.c.hour, amount.desc(), usage.c.session_id, usage.c.base_model, usage.c.kind)
    )
    named = select(sessions.c.session_id, sessions.c.user_metadata).where(
        sessions.c.tenant_id == tenant_id, sessions.c.session_id.in_(select(usage.c.session_id).where(wanted))
    )
    metadata = {row.session_id: row.user_metadata for row in connection.execute(named)}
    return UsageReport(tuple(UsageRow(*row[:4], int(row[4]), row[5], int(row[6])) for row in rows), metadata)


def spending(connection: Connection, tenant_id: str | None, first_hour: int, end_hour: int) -> tuple[Spending, ...]:
    """What was used in some hours, by everything that it is counted by but the hour."""
    wanted = and_(usage.c.hour >= first_hour, usage.c.hour < end_hour)
    if tenant_id is not None:
        wanted = and_(wanted, usage.c.tenant_id == tenant_id)
    user = func.coalesce(sessions.c.user_id, "")
    key = (usage.c.tenant_id, _PROJECT, user, usage.c.session_id, usage.c.run_id, usage.c.base_model, usage.c.kind)
    rows = connection.execute(
        select(*key, func.sum(usage.c.amount), func.sum(usage.c.busy_us))
        .outerjoin(sessions, _OF_SESSION)
        .where(wanted)
        .group_by(*key)
        .order_by(*key)
    )
    return tuple(Spending(*row[:7], int(row[7]), int(row[8])) for row in rows)


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
