"""The clients of one sampling session: their numbers, and which of their samples have ended (tinker-api §3.3)."""

import asyncio
from contextlib import suppress

from starlette.responses import Response

from openrl.errors import NotFound
from openrl.gateway.body import read_json
from openrl.gateway.context import Call, Route
from openrl.gateway.replies import json_reply
from openrl.protocol.wire import CLONE_SEQ_IDS, FuturesRequest, JoinSamplingSessionRequest
from openrl.store.base import Json, RequestRow


async def join_sampling_session(call: Call) -> Response:
    """A number for a copy of a sampling client: from 1, never given twice."""
    request = await read_json(call, JoinSamplingSessionRequest)
    number = await call.gateway.store.join_sampler(call.tenant_id, request.sampling_session_id)
    return json_reply({"type": "join_sampling_session", "client_counter": number})


async def retrieve_futures(call: Call) -> Response:
    """Samples of one client that ended after its cursor; waits for the first unless `timeout` says otherwise.

    A cursor is a place in the store's order of ended samples: it holds over restarts, and an answer that was lost
    comes again. Results that the client has are let go.
    """
    request = await read_json(call, FuturesRequest)
    store, longest = call.gateway.store, call.gateway.config.long_poll_s
    sampler_id, first = request.target.sampling_session_id, request.target.cloned_sampler_id * CLONE_SEQ_IDS
    timeout_s = longest if request.timeout is None else min(request.timeout, longest)
    rows: tuple[RequestRow, ...] = ()
    async with call.gateway.polls.hold():
        ended = store.ended_samples(
            call.tenant_id, sampler_id, range(first, first + CLONE_SEQ_IDS), request.prev_cursor, timeout_s
        )
        if request.retrieved_request_ids:
            released = store.release_results(call.tenant_id, sampler_id, request.retrieved_request_ids)
            rows, _ = await asyncio.gather(ended, released)
        else:
            rows = await ended
    cursor = rows[-1].end_position if rows else request.prev_cursor
    return json_reply({"completions": [_completion(call, row) for row in rows], "cursor": cursor})


def _completion(call: Call, row: RequestRow) -> Json:
    if row.state != "done":
        return {"state": "failed", "request_id": row.request_id}
    content: Json = {"state": "finished", "request_id": row.request_id}
    with suppress(NotFound):  # it was let go; the client learns that when it asks for it
        content["response_payload_uncompressed_size"] = call.gateway.blobs.payload_size(row.result_ref)
    return content


ROUTES = (
    Route("POST", "/retrieve_futures", retrieve_futures, body=FuturesRequest),
    Route("POST", "/join_sampling_session", join_sampling_session, body=JoinSamplingSessionRequest),
)
