"""Results of queued requests: long polls that end with the stored bytes."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from openrl.errors import BadValue, ErrorCategory, NotFound, RequestFailed, RequestTimeout, ResultExpired
from openrl.gateway.body import read_json
from openrl.gateway.client_flags import is_on, is_remote
from openrl.gateway.context import Call, Route
from openrl.gateway.errors import error_content, error_response
from openrl.gateway.json_replies import accepts_only_json, result_json
from openrl.gateway.replies import JSON_TYPE, PROTOBUF_TYPE, json_reply
from openrl.protocol.runs import RequestKind
from openrl.protocol.wire import FutureRequest
from openrl.store.base import RequestRow
from openrl.store.cluster import Signal

_INLINE_BYTES = 2**16
"""Larger results are read in a thread, so that they do not hold up other requests."""
_PROTOBUF_KINDS: frozenset[RequestKind] = frozenset(("sample", "forward", "forward_backward"))


async def retrieve_future(call: Call) -> Response:
    """The result, a failure (both 200), or after `long_poll_s` the advice to ask again."""
    request = await read_json(call, FutureRequest)
    gateway = call.gateway
    row: RequestRow | None = None
    async with gateway.polls.hold():
        row = await gateway.store.wait_finished(call.tenant_id, request.request_id, gateway.config.long_poll_s)
    if row is None:
        return await _try_again(call, request.request_id)
    call.note(row)
    if row.state == "done":
        return (request.allow_metadata_only and _announcement(call, row)) or await _result(call, row)
    if row.state == "cancelled":
        return _failure(call.request, "the request was cancelled", "user")
    return _failure(call.request, row.error or "the request failed", row.category)


def _announcement(call: Call, row: RequestRow) -> Response | None:
    """The size of a large result, which the client then fetches when it has room; None if it is not large.

    To be sent only to those who allow it: any other client dies of it.
    """
    gateway = call.gateway
    if not is_on(gateway.client, "complete_metadata", is_remote(call.request)):
        return None
    try:
        size = gateway.blobs.payload_size(row.result_ref)
    except NotFound:
        return None
    if size < gateway.client.complete_metadata_bytes:
        return None
    return json_reply({"status": "complete_metadata", "request_id": row.request_id, "response_payload_size": size})


async def _result(call: Call, row: RequestRow) -> Response:
    blobs = call.gateway.blobs
    try:
        content = blobs.peek_payload(row.result_ref, _INLINE_BYTES)
        if content is None:
            content = await asyncio.to_thread(blobs.get_payload, row.result_ref)
    except NotFound:
        return _lost(call.request, row)
    if row.kind in _PROTOBUF_KINDS and accepts_only_json(call.request):
        return Response(await asyncio.to_thread(result_json, row.kind, content), media_type=JSON_TYPE)
    return Response(content, media_type=PROTOBUF_TYPE if row.kind in _PROTOBUF_KINDS else JSON_TYPE)


def _lost(request: Request, row: RequestRow) -> Response:
    """Results are kept for a while only. A lost sample is drawn again (410); training must not run twice."""
    message = f"the result of request {row.request_id} is no more: it was not fetched in time"
    if row.kind == "sample":
        raise ResultExpired(f"{message}; draw it again", value=row.request_id)
    return _failure(request, message, "server")


def _failure(request: Request, message: str, category: ErrorCategory) -> Response:
    """Failures are answers: clients repeat any other status for ever, or die of it (tinker-api P10)."""
    refusal = error_content(request, RequestFailed(message, category))
    return json_reply({"error": refusal.pop("detail"), "category": category, **refusal})


async def _try_again(call: Call, request_id: str) -> Response:
    asked = RequestTimeout(f"request {request_id} has no result yet; ask again")
    more = {"type": "try_again", "request_id": request_id, "queue_state": "active"}
    pause = await call.gateway.pauses.pause_of(call.tenant_id, request_id)
    if pause is not None:
        more |= {"queue_state": pause.state, "queue_state_reason": pause.reason}
    return error_response(call.request, asked, more)


async def cancel_future(call: Call) -> Response:
    """Drop a sample that nobody waits for; one that has finished stays as it is."""
    request = await read_json(call, FutureRequest)
    gateway = call.gateway
    row = await gateway.store.get_request(call.tenant_id, request.request_id)
    if row.kind != "sample":
        raise BadValue(f"request {row.request_id}: kind", row.kind, "sample, which can be cancelled", "wrong_kind")
    if await gateway.store.cancel_request(call.tenant_id, row.request_id, gateway.clock()):
        await gateway.tell(Signal("cancel", row.request_id))
    return json_reply({})


ROUTES = (
    Route("POST", "/retrieve_future", retrieve_future, "read", body=FutureRequest),
    Route("POST", "/cancel_future", cancel_future, body=FutureRequest),
)
