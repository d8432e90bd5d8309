"""SQL that lets go of payloads and results, and tells which packs are still referred to."""

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    TextClause,
    and_,
    column,
    exists,
    or_,
    select,
    update,
    values,
)

from openrl.store.schema import HAS_PAYLOAD, HAS_RESULT, requests, runs

BATCH = 1000  # rows in one transaction, so that arrivals never wait long behind a large clean-up


def release_results(connection: Connection, finished_before: float) -> int:
    """Drop one batch of references to results of requests that finished before the bound; returns how many."""
    is_old = and_(requests.c.state != "queued", requests.c.finished_at < finished_before)
    return _release(connection, "result_ref", HAS_RESULT, is_old)


def release_payloads(connection: Connection) -> int:
    """Drop one batch of references to payloads that no replay needs; returns how many."""
    covered = exists().where(
        runs.c.run_id == requests.c.run_id, or_(runs.c.is_closed, requests.c.seq_id <= runs.c.snapshot_seq_id)
    )
    is_spent = and_(requests.c.state != "queued", or_(requests.c.run_id == "", covered))
    return _release(connection, "payload_ref", HAS_PAYLOAD, is_spent)


def packs_in_use(connection: Connection, packs: Sequence[str]) -> frozenset[str]:
    """Those that any row refers to: two look-ups in an index for each, all in one query.

    Refs are "<pack>:...", and ';' sorts right after ':'.
    """
    if not packs:
        return frozenset()
    asked = values(column("pack", String)).data([(pack,) for pack in packs]).cte("asked")
    held = [
        exists().where(ref >= asked.c.pack.concat(":"), ref < asked.c.pack.concat(";"), is_held)
        for ref, is_held in ((requests.c.payload_ref, HAS_PAYLOAD), (requests.c.result_ref, HAS_RESULT))
    ]
    return frozenset(connection.scalars(select(asked.c.pack).where(or_(*held))))


def _release(connection: Connection, ref: str, held: TextClause, condition: ColumnElement[bool]) -> int:
    batch = select(requests.c.position).where(held, condition).limit(BATCH)
    released = update(requests).where(requests.c.position.in_(batch)).values({ref: ""})
    return connection.execute(released).rowcount
