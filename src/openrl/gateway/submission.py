"""Queues training requests: finds the run, admits or refuses, and uses up the number either way.

A client counts a refused request (tinker-api P7): the run's next one carries the next number. So a refusal is
stored as a request that has failed, and answered with 4xx besides.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.responses import Response

from openrl.errors import InvalidRequest, NotFound, OpenRLError, QuotaReached, Unauthorized
from openrl.gateway.body import Message, parse_json
from openrl.gateway.context import Call
from openrl.gateway.replies import future_reply
from openrl.protocol.runs import TrainingKind
from openrl.protocol.wire import RunAddress
from openrl.store.base import RequestRow, RunRow

MAX_ERROR_CHARACTERS = 2000


async def find_run(call: Call, run_id: str) -> RunRow:
    """The tenant's run; only its spec and session may be relied on. Raises NotFound, InvalidRequest."""
    if not run_id:  # what a protobuf body says that leaves it out
        raise InvalidRequest("model_id is missing", "missing")
    if "\x00" in run_id:  # from a protobuf body, where nothing refuses it; databases do
        raise NotFound.of("training run", run_id)
    run = await call.gateway.runs.get(call.tenant_id, run_id, call.gateway.store.get_run)
    if run.copied_from is not None:
        message = (
            f"training run {run_id} holds a copy of {run.copied_from} and cannot be trained; "
            "load the copy into a new run instead"
        )
        raise InvalidRequest(message, "wrong_kind", value=run_id, bound="a training run that holds no copy")
    return run


def new_request(call: Call, run: RunRow, kind: TrainingKind, seq_id: int) -> RequestRow:
    """A queued request of a run; its retry identity is its number."""
    row = RequestRow(
        request_id=call.gateway.new_id(),
        tenant_id=call.tenant_id,
        session_id=run.session_id,
        kind=kind,
        dedupe_key=f"run:{run.spec.run_id}:{seq_id}",
        seq_id=seq_id,
        created_at=call.gateway.clock(),
        run_id=run.spec.run_id,
        base_model=run.spec.base_model,
        trace_context=call.trace_context,
    )
    call.note(row)
    return row


async def submit_json(
    call: Call,
    body: bytes,
    kind: TrainingKind,
    model: type[Message],
    admit: Callable[[Call, RunRow, Message, bytes], Awaitable[bytes]],
    object_of: Callable[[bytes], str] = lambda _: "",
) -> Response:
    """Queue what `admit` makes of the body; it raises InvalidRequest, NotFound or Unauthorized to refuse.

    Or QuotaReached: the request is then one that has failed, as it would be if it had met the quota later.
    `object_of`: key of the object that a payload refers to.
    """
    address = parse_json(body, RunAddress)
    run = await find_run(call, address.model_id)
    row = new_request(call, run, kind, address.seq_id)
    await admit_queued(call, row)
    try:
        payload = await admit(call, run, parse_json(body, model), body)
    except (InvalidRequest, NotFound, Unauthorized) as error:
        return await refuse(call, row, error)
    except QuotaReached as error:
        return future_reply(await call.gateway.store.enqueue(failed_request(row, error), b""))
    return future_reply(await call.gateway.store.enqueue(replace(row, object_key=object_of(payload)), payload))


async def admit_queued(call: Call, row: RequestRow) -> None:
    """Raises QuotaExceeded while too many requests have not finished: the client sends it again, with its number."""
    await call.gateway.quota_book.admit_queued(call.tenant_id, row.session_id, row.dedupe_key, row.run_id, row.seq_id)


def failed_request(row: RequestRow, error: OpenRLError) -> RequestRow:
    """The request as one that has failed by its client's doing."""
    return replace(
        row, state="failed", error=str(error)[:MAX_ERROR_CHARACTERS], category="user", finished_at=row.created_at
    )


async def refuse(call: Call, row: RequestRow, error: InvalidRequest | NotFound | Unauthorized) -> Response:
    """Use up the request's number and raise `error`; the retry of a request that was queued gets its id again."""
    stored = await call.gateway.store.enqueue(failed_request(row, error), b"")
    if stored.request_id != row.request_id:
        return future_reply(stored)
    raise error


async def refuse_address(
    call: Call, address: tuple[str, int] | None, kind: TrainingKind, error: InvalidRequest
) -> Response:
    """Refuse a body that could not be read, as far as it says whose it is."""
    if address is None or address[1] < 1:
        raise error
    run_id, seq_id = address
    return await refuse(call, new_request(call, await find_run(call, run_id), kind, seq_id), error)
