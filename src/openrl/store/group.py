"""Applies a group of writes inside one transaction, so that each of them still fails alone."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, StatementError

from openrl.errors import InvalidRequest, OpenRLError, Unavailable
from openrl.store import leases, quota_rows, requests, runs
from openrl.store.base import Blobs, FinishedRequest, RequestRow, RunRow
from openrl.store.cluster import Lease
from openrl.store.quotas import UNBOUNDED, Bound


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Store one request with its payload."""

    request: RequestRow
    payload: bytes


@dataclass(frozen=True, slots=True)
class CreateRun:
    """Store a run and its request 0."""

    run: RunRow
    request: RequestRow
    payload: bytes
    max_live: Bound = UNBOUNDED


@dataclass(frozen=True, slots=True)
class Finish:
    """Record how requests ended."""

    finished: Sequence[FinishedRequest]


@dataclass(frozen=True, slots=True)
class Change:
    """Any other write."""

    apply: Callable[[Connection], Any]
    is_fenced: bool = True


Write = Enqueue | CreateRun | Finish | Change


@dataclass(slots=True)
class Committed:
    """One answer per write, in order (an exception where it failed), and the request rows that changed."""

    answers: list[Any]
    arrived: list[RequestRow] = field(default_factory=list[RequestRow])  # in order of position
    ended: list[RequestRow] = field(default_factory=list[RequestRow])
    after: int = 0  # position of the last request before those that arrived
    number: int = 0  # of the group among those of its writer


Refs = Sequence[str | Unavailable]
"""Of each write: where its payload is, or why it could not be put there; empty where it has none."""


def put_payloads(writes: Sequence[Write], blobs: Blobs) -> Refs:
    """Put the payloads of all that arrives, at once.

    Comes before the transaction: an object store may take longer than others should wait for the write lock.
    """
    payloads = [write.payload for write in writes if isinstance(write, Enqueue | CreateRun)]
    if not payloads:
        return [""] * len(writes)
    try:
        refs = iter(blobs.put_payloads(payloads))
    except Unavailable as error:
        return [error] * len(writes)
    return [next(refs) if isinstance(write, Enqueue | CreateRun) else "" for write in writes]


def apply_group(
    connection: Connection, writes: Sequence[Write], refs: Refs, fence: Lease | None = None, is_careful: bool = False
) -> Committed:
    """Apply all writes; the caller commits. When another process has had the lease `fence`, they are refused.

    The writes of a group are concurrent, so their order is free: arrivals go first and ends second,
    each as one batch, then the rest one by one. An error that is no caller's fault is raised.

    A batch with a value that does not fit the database raises what `is_unfit` tells; the caller rolls back and
    applies the group again with `is_careful`: then arrivals and ends go one by one too, each with its own answer.
    Savepoints would do without the second time, but cost every group as much as its rows.
    """
    group = _Group(connection, Committed([None] * len(writes)), refs, is_careful)
    allowed = _allowed(group, writes, fence)
    _add_arrivals(group, [(i, w) for i, w in allowed if isinstance(w, Enqueue | CreateRun)])
    _add_ends(group, [(i, w) for i, w in allowed if isinstance(w, Finish)])
    for index, write in allowed:
        if isinstance(write, Change):
            with _alone(group, index):
                group.committed.answers[index] = write.apply(connection)
    return group.committed


def is_unfit(error: Exception) -> bool:
    """Whether the error comes from a value that the database does not take, rather than from the database."""
    if isinstance(error, OperationalError | InternalError):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return False
    return isinstance(error, StatementError | OverflowError | UnicodeEncodeError)


def unfit(error: Exception) -> InvalidRequest:
    """What the caller is told whose value the database does not take."""
    reason = error.orig if isinstance(error, StatementError) else error
    return InvalidRequest(f"an id is taken or a value does not fit its column: {reason}")


@dataclass(slots=True)
class _Group:
    connection: Connection
    committed: Committed
    refs: Refs
    is_careful: bool
    position: int = 0  # of the newest request, once there are arrivals


def _allowed(group: _Group, writes: Sequence[Write], fence: Lease | None) -> Sequence[tuple[int, Write]]:
    """Answer what the fence refuses; return the rest."""
    indexed = list(enumerate(writes))
    if fence is None or not leases.is_fenced_off(group.connection, fence):
        return indexed
    unfenced = [(i, w) for i, w in indexed if isinstance(w, Change) and not w.is_fenced]
    group.committed.answers[:] = [leases.lost(fence) for _ in writes]
    return unfenced


@contextmanager
def _alone(group: _Group, index: int) -> Generator[None, None, None]:
    """A savepoint: what the caller of one write can get wrong becomes its answer and undoes only its effect."""
    try:
        with group.connection.begin_nested():
            yield
    except OpenRLError as error:
        group.committed.answers[index] = error
    except (StatementError, OverflowError, UnicodeEncodeError) as error:
        if not is_unfit(error):  # the database cannot work: nobody's write can stand
            raise
        group.committed.answers[index] = unfit(error)


def _add_arrivals(group: _Group, arrivals: list[tuple[int, Enqueue | CreateRun]]) -> None:
    fresh = [(index, write) for index, write in arrivals if isinstance(write, CreateRun)]
    fresh = _screen(group, arrivals) + fresh
    if not fresh:
        return
    group.position = group.committed.after = requests.last_position(group.connection)
    stamped: list[tuple[int, Enqueue | CreateRun, str]] = []
    for index, write in fresh:
        ref = group.refs[index]
        if isinstance(ref, Unavailable):
            group.committed.answers[index] = ref
        else:
            stamped.append((index, write, ref))
    _enqueue(group, [(index, write.request, ref) for index, write, ref in stamped if isinstance(write, Enqueue)])
    for index, write, ref in stamped:
        if isinstance(write, CreateRun):
            _create_run(group, index, write, ref)


def _screen(group: _Group, arrivals: list[tuple[int, Enqueue | CreateRun]]) -> list[tuple[int, Enqueue | CreateRun]]:
    """Answer retries and refusals; return what must be inserted, each retry identity once."""
    enqueues = [(index, write) for index, write in arrivals if isinstance(write, Enqueue)]
    if not enqueues:
        return []
    known = requests.screen(group.connection, [write.request for _, write in enqueues])
    fresh: list[tuple[int, Enqueue | CreateRun]] = []
    for place, (index, write) in enumerate(enqueues):
        if place in known:
            group.committed.answers[index] = known[place]
        else:
            fresh.append((index, write))
    return fresh


def _enqueue(group: _Group, arrivals: list[tuple[int, RequestRow, str]]) -> None:
    firsts: dict[tuple[str, str], int] = {}
    rows: dict[int, RequestRow] = {}
    for index, row, ref in arrivals:
        first = firsts.setdefault((row.tenant_id, row.dedupe_key), index)
        if first == index:
            group.position += 1
            rows[index] = replace(row, position=group.position, payload_ref=ref)
    for index, row in rows.items() if group.is_careful else ():
        with _alone(group, index):
            _insert(group, {index: row})
    if not group.is_careful:
        _insert(group, rows)
    for index, row, _ in arrivals:
        group.committed.answers[index] = group.committed.answers[firsts[row.tenant_id, row.dedupe_key]]


def _insert(group: _Group, rows: dict[int, RequestRow]) -> None:
    if rows:
        requests.insert_requests(group.connection, list(rows.values()))
    for index, row in rows.items():
        group.committed.answers[index] = row
        group.committed.arrived.append(row)


def _create_run(group: _Group, index: int, write: CreateRun, payload_ref: str) -> None:
    with _alone(group, index):
        found = runs.repeated_run(group.connection, write.run)
        if found is not None:
            group.committed.answers[index] = (found, requests.first_request_of(group.connection, found))
            return
        quota_rows.check_live_runs(group.connection, write.run, write.max_live)
        request = replace(write.request, position=group.position + 1, payload_ref=payload_ref)
        run = replace(write.run, last_request_at=max(write.run.last_request_at, request.created_at))
        runs.insert_run(group.connection, run)
        requests.insert_requests(group.connection, [request])
        group.position += 1
        group.committed.answers[index] = (run, request)
        group.committed.arrived.append(request)


def _add_ends(group: _Group, ends: list[tuple[int, Finish]]) -> None:
    for index, write in ends if group.is_careful else ():
        with _alone(group, index):
            _note_end(group, index, requests.finish_requests(group.connection, [write.finished])[0])
    if ends and not group.is_careful:
        answers = requests.finish_requests(group.connection, [write.finished for _, write in ends])
        for (index, _), answer in zip(ends, answers, strict=True):
            _note_end(group, index, answer)


def _note_end(group: _Group, index: int, answer: requests.Ended | OpenRLError) -> None:
    if isinstance(answer, OpenRLError):
        group.committed.answers[index] = answer
    else:
        group.committed.ended.extend(answer.rows)
