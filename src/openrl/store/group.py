"""Applies a group of writes inside one transaction, so that each of them still fails alone."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import InternalError, OperationalError, StatementError

from openrl.errors import InvalidRequest, OpenRLError, Unavailable
from openrl.store import requests, runs
from openrl.store.base import Blobs, FinishedRequest, RequestRow, RunRow


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


@dataclass(frozen=True, slots=True)
class Finish:
    """Record how requests ended."""

    finished: Sequence[FinishedRequest]


@dataclass(frozen=True, slots=True)
class Change:
    """Any other write."""

    apply: Callable[[Connection], Any]


Write = Enqueue | CreateRun | Finish | Change


@dataclass(frozen=True, slots=True)
class Committed:
    """One answer per write, in order (an exception where it failed), and the request rows that changed."""

    answers: list[Any]
    arrived: list[RequestRow] = field(default_factory=list[RequestRow])  # in order of position
    ended: list[RequestRow] = field(default_factory=list[RequestRow])


def apply_group(connection: Connection, writes: Sequence[Write], blobs: Blobs, is_careful: bool = False) -> Committed:
    """Apply all writes; the caller commits.

    The writes of a group are concurrent, so their order is free: arrivals go first and ends second,
    each as one batch, then the rest one by one. An error that is no caller's fault is raised.

    A batch with a value that does not fit the database raises what `is_unfit` tells; the caller rolls back and
    applies the group again with `is_careful`: then arrivals and ends go one by one too, each with its own answer.
    Savepoints would do without the second time, but cost every group as much as its rows.
    """
    group = _Group(connection, Committed([None] * len(writes)), is_careful)
    _add_arrivals(group, [(i, w) for i, w in enumerate(writes) if isinstance(w, Enqueue | CreateRun)], blobs)
    _add_ends(group, [(i, w) for i, w in enumerate(writes) if isinstance(w, Finish)])
    for index, write in enumerate(writes):
        if isinstance(write, Change):
            with _alone(group, index):
                group.committed.answers[index] = write.apply(connection)
    return group.committed


def is_unfit(error: Exception) -> bool:
    """Whether the error comes from a value that the database does not take, rather than from the database."""
    is_refused = isinstance(error, StatementError | OverflowError | UnicodeEncodeError)
    return is_refused and not isinstance(error, OperationalError | InternalError)


@dataclass(slots=True)
class _Group:
    connection: Connection
    committed: Committed
    is_careful: bool
    position: int = 0  # of the newest request, once there are arrivals


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
        reason = error.orig if isinstance(error, StatementError) else error
        group.committed.answers[index] = InvalidRequest(f"an id is taken or a value does not fit its column: {reason}")


def _add_arrivals(group: _Group, arrivals: list[tuple[int, Enqueue | CreateRun]], blobs: Blobs) -> None:
    fresh = [(index, write) for index, write in arrivals if isinstance(write, CreateRun)]
    fresh = _screen(group, arrivals) + fresh
    if not fresh:
        return
    group.position = requests.last_position(group.connection)
    try:
        refs = blobs.put_payloads([write.payload for _, write in fresh])
    except Unavailable as error:
        for index, _ in fresh:
            group.committed.answers[index] = error
        return
    stamped = [(index, write, ref) for (index, write), ref in zip(fresh, refs, strict=True)]
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
