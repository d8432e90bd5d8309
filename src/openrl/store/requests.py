"""SQL of requests: arrivals and ends in batches, and the questions asked about them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, or_, select, update

from openrl.errors import NotFound, SessionEnded
from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import DROPPING_KIND, STATE_CHANGING_KINDS
from openrl.store import checkpoints, samplers, usage
from openrl.store.base import MAX_ENDED, FinishedRequest, RequestRow, RunRow
from openrl.store.bulk import insert_many, raise_many, update_many
from openrl.store.rows import one_row, request_values, rows_of, select_rows
from openrl.store.runs import any_run, get_run
from openrl.store.schema import ENDED_SAMPLES, HAS_ENDED_SAMPLE, HAS_RUN, IS_QUEUED, counters, requests, runs
from openrl.store.stored_bytes import StoredCheck

MAX_ARRIVED = 1000
TAKE_END_POSITIONS = (
    update(counters)
    .where(counters.c.name == ENDED_SAMPLES)
    .values(value=counters.c.value + bindparam("num"))
    .returning(counters.c.value)
)
RELEASE = (
    update(requests)
    .where(requests.c.request_id == bindparam("id"), requests.c.tenant_id == bindparam("tenant"))
    .where(requests.c.sampler_id == bindparam("sampler"), requests.c.state != "queued")
    .values(result_ref="")
)
BY_DEDUPE_KEY = select_rows(RequestRow).where(requests.c.dedupe_key.in_(bindparam("keys", expanding=True)))
BY_ID = select_rows(RequestRow).where(requests.c.request_id.in_(bindparam("ids", expanding=True)))
RUN_OWNERS = select(runs.c.run_id, runs.c.tenant_id, runs.c.is_closed).where(
    runs.c.run_id.in_(bindparam("ids", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one `finish` call: the rows it changed."""

    rows: tuple[RequestRow, ...]


def last_position(connection: Connection) -> int:
    """The position of the newest request, 0 if there is none; exact while the write lock is held."""
    return connection.scalar(select(func.max(requests.c.position))) or 0


def screen(connection: Connection, arrivals: Sequence[RequestRow]) -> dict[int, RequestRow | Exception]:
    """What is known of each arrival by its index: the first row if it is a retry, or why it is refused."""
    known = repeated_requests(connection, arrivals)
    owners = _run_owners(connection, {row.run_id for row in arrivals if row.run_id})
    answers: dict[int, RequestRow | Exception] = {}
    for index, row in enumerate(arrivals):
        answer = known.get((row.tenant_id, row.dedupe_key)) or _refusal(row, owners)
        if answer is not None:
            answers[index] = answer
    return answers


def repeated_requests(connection: Connection, arrivals: Iterable[RequestRow]) -> dict[tuple[str, str], RequestRow]:
    """Stored rows with the same retry identities, by (tenant_id, dedupe_key)."""
    keys = [row.dedupe_key for row in arrivals]
    rows = rows_of(connection, RequestRow, BY_DEDUPE_KEY, {"keys": keys})
    return {(row.tenant_id, row.dedupe_key): row for row in rows}


def insert_requests(connection: Connection, rows: Sequence[RequestRow]) -> None:
    """Add rows that are not there, and move `last_request_at` of their runs."""
    insert_many(connection, requests, [request_values(row) for row in rows])
    newest: dict[str, float] = {}
    for row in rows:
        if row.run_id:
            newest[row.run_id] = max(row.created_at, newest.get(row.run_id, row.created_at))
    if newest:
        raise_many(connection, runs, "run_id", "last_request_at", newest)


def first_request_of(connection: Connection, run: RunRow) -> RequestRow:
    """The request that created a run."""
    query = select_rows(RequestRow).where(requests.c.run_id == run.spec.run_id, HAS_RUN)
    return one_row(
        connection, RequestRow, query.order_by(requests.c.position).limit(1), "first request of run", run.spec.run_id
    )


def finish_requests(connection: Connection, calls: Sequence[Sequence[FinishedRequest]]) -> list[Ended | NotFound]:
    """Record how requests ended, one answer per call; a call that names an unknown request changes nothing."""
    rows = rows_of(connection, RequestRow, BY_ID, {"ids": [item.request_id for call in calls for item in call]})
    stored = {row.request_id: row for row in rows}
    unknown = [next((item.request_id for item in call if item.request_id not in stored), None) for call in calls]
    known = [call for call, missing in zip(calls, unknown, strict=True) if missing is None]
    positions = _take_end_positions(connection, {item.request_id for call in known for item in call}, stored)
    answers: list[Ended | NotFound] = []
    effective: list[FinishedRequest] = []
    taken: set[str] = set()
    stored_bytes = StoredCheck(connection)
    for call, missing in zip(calls, unknown, strict=True):
        if missing is not None:
            answers.append(NotFound.of("request", missing))
            continue
        queued = [item for item in call if stored[item.request_id].state == "queued"]
        named = [_with_name_checked(connection, item, taken) for item in queued]
        checked = [stored_bytes.checked(stored[item.request_id], item) for item in named]
        answers.append(Ended(tuple(_end(checked, stored, positions, effective))))
    _write_ends(connection, effective, stored)
    usage.count(connection, ((stored[item.request_id], item) for item in effective))
    return answers


def get_request(connection: Connection, tenant_id: str, request_id: str) -> RequestRow:
    """One request of a tenant."""
    query = select_rows(RequestRow).where(requests.c.request_id == request_id, requests.c.tenant_id == tenant_id)
    return one_row(connection, RequestRow, query, "request", request_id)


def ended_samples(
    connection: Connection, tenant_id: str, sampler_id: str, seq_ids: range, after: int
) -> tuple[RequestRow, ...]:
    """What ended later than `after` among these numbers of a tenant's sampler, in order of ending."""
    samplers.get_sampler(connection, tenant_id, sampler_id)
    query = select_rows(RequestRow).where(
        requests.c.sampler_id == sampler_id,
        requests.c.tenant_id == tenant_id,
        HAS_ENDED_SAMPLE,
        requests.c.end_position > after,
        requests.c.seq_id.between(seq_ids.start, seq_ids.stop - 1),
    )
    return rows_of(connection, RequestRow, query.order_by(requests.c.end_position).limit(MAX_ENDED))


def release_results(connection: Connection, released: Sequence[tuple[str, str, str]]) -> None:
    """Drop references to results of finished requests, each named by tenant, sampler and id."""
    rows = [{"tenant": tenant_id, "sampler": sampler_id, "id": each} for tenant_id, sampler_id, each in released]
    connection.execute(RELEASE, rows)


def backlog(connection: Connection) -> tuple[int, tuple[RequestRow, ...]]:
    """The position of the newest request, and all unfinished ones in order."""
    query = select_rows(RequestRow).where(IS_QUEUED).order_by(requests.c.position)
    return last_position(connection), rows_of(connection, RequestRow, query)


def arrived_after(connection: Connection, position: int) -> tuple[RequestRow, ...]:
    """The next MAX_ARRIVED requests after a position, in order, as they are by this time."""
    query = select_rows(RequestRow).where(requests.c.position > position).order_by(requests.c.position)
    return rows_of(connection, RequestRow, query.limit(MAX_ARRIVED))


def ended_among(connection: Connection, request_ids: Sequence[str]) -> tuple[RequestRow, ...]:
    """Those of these requests that have ended."""
    rows = rows_of(connection, RequestRow, BY_ID, {"ids": list(request_ids)})
    return tuple(row for row in rows if row.state != "queued")


def run_log(connection: Connection, run_id: str, after_seq_id: int) -> tuple[RequestRow, ...]:
    """What a replay of the run executes after `after_seq_id`."""
    has_changed = and_(requests.c.state == "done", requests.c.kind.in_(sorted(STATE_CHANGING_KINDS)))
    has_dropped = and_(requests.c.state == "failed", requests.c.kind == DROPPING_KIND, requests.c.category == "server")
    query = select_rows(RequestRow).where(
        requests.c.run_id == run_id, HAS_RUN, requests.c.seq_id > after_seq_id, or_(has_changed, has_dropped)
    )
    return rows_of(connection, RequestRow, query.order_by(requests.c.seq_id))


def run_progress(connection: Connection, run_id: str) -> tuple[RunRow, int, frozenset[int]]:
    """The run, the smallest number that has not finished, and larger ones that have."""
    return any_run(connection, run_id), *_free_seq_ids(connection, run_id)


def free_seq_ids(connection: Connection, tenant_id: str, run_id: str) -> tuple[int, frozenset[int]]:
    """The smallest number of a tenant's run that has not finished, and larger ones that have."""
    get_run(connection, tenant_id, run_id)
    return _free_seq_ids(connection, run_id)


def _free_seq_ids(connection: Connection, run_id: str) -> tuple[int, frozenset[int]]:
    query = select(requests.c.seq_id).where(requests.c.run_id == run_id, HAS_RUN, requests.c.state != "queued")
    finished = set(connection.scalars(query))
    next_seq_id = 0
    while next_seq_id in finished:
        finished.remove(next_seq_id)
        next_seq_id += 1
    return next_seq_id, frozenset(finished)


def _run_owners(connection: Connection, run_ids: Collection[str]) -> dict[str, tuple[str, bool]]:
    if not run_ids:
        return {}
    found = connection.execute(RUN_OWNERS, {"ids": list(run_ids)})
    return {row.run_id: (row.tenant_id, row.is_closed) for row in found}


def _refusal(row: RequestRow, owners: dict[str, tuple[str, bool]]) -> Exception | None:
    owner = owners.get(row.run_id)
    if owner is None:
        return None
    tenant_id, is_closed = owner
    if tenant_id != row.tenant_id:
        return NotFound.of("training run", row.run_id)
    if is_closed:
        return SessionEnded.of_run(row.run_id)
    return None


def _with_name_checked(connection: Connection, item: FinishedRequest, taken: set[str]) -> FinishedRequest:
    """The same end; failed if it saves under a name that is taken, by a row or in this batch, and must not replace."""
    saved = item.checkpoint
    if saved is None:
        return item
    path = str(CheckpointPath(saved.run_id, saved.kind, saved.name))
    is_free = path not in taken and checkpoints.is_name_free(
        connection, saved.run_id, saved.kind, saved.name, item.finished_at
    )
    if is_free or item.may_replace:
        taken.add(path)
        return item
    checkpoints.doom_if_unused(connection, saved.key)
    return name_taken(item, path)


def name_taken(item: FinishedRequest, path: str) -> FinishedRequest:
    """The failed end of a save whose name is taken."""
    error = f"checkpoint {path} exists already; choose another name or delete it first"
    return replace(item, state="failed", result_ref="", error=error, category="user", checkpoint=None)


def _take_end_positions(connection: Connection, ids: Collection[str], stored: dict[str, RequestRow]) -> Iterator[int]:
    """As many as queued samples among the ids."""
    num = sum(stored[each].state == "queued" and stored[each].sampler_id != "" for each in ids)
    if not num:
        return iter(())
    last = connection.scalar(TAKE_END_POSITIONS, {"num": num})
    assert last is not None, "the migration made the counter"
    return iter(range(last - num + 1, last + 1))


def _end(
    call: Sequence[FinishedRequest],
    stored: dict[str, RequestRow],
    positions: Iterator[int],
    effective: list[FinishedRequest],
) -> Iterable[RequestRow]:
    for item in call:
        row = stored[item.request_id]
        if row.state != "queued":
            continue
        effective.append(item)
        stored[item.request_id] = replace(
            row,
            state=item.state,
            result_ref=item.result_ref,
            error=item.error,
            category=item.category,
            finished_at=item.finished_at,
            end_position=next(positions) if row.sampler_id else 0,
        )
        yield stored[item.request_id]


def _write_ends(connection: Connection, ends: Sequence[FinishedRequest], stored: dict[str, RequestRow]) -> None:
    if not ends:
        return
    values = [_end_values(item, stored[item.request_id].end_position) for item in ends]
    update_many(connection, requests, "request_id", values)
    for item in ends:
        if item.checkpoint is not None:
            checkpoints.put_checkpoint(connection, item.checkpoint)
        if item.sampler is not None:
            samplers.create_sampler(connection, item.sampler)


def _end_values(item: FinishedRequest, end_position: int) -> dict[str, Any]:
    return {
        "id": item.request_id,
        "state": item.state,
        "result_ref": item.result_ref,
        "error": item.error,
        "category": item.category,
        "finished_at": item.finished_at,
        "end_position": end_position,
        "used_tokens": item.num_tokens,
        "busy_s": item.busy_s,
        "wall_s": item.wall_s,
        "sampled_tokens": item.num_sampled_tokens,
        "cached_tokens": item.num_cached_tokens,
    }
