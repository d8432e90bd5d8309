"""Losses that clients trace and upload, to be called as loss_fn "custom"."""

import asyncio
import json

from starlette.responses import Response

from openrl.errors import BadValue
from openrl.gateway.active_session import find_active_session
from openrl.gateway.body import parse_json, read_body
from openrl.gateway.context import Call, Route
from openrl.gateway.custom_losses import keep_loss
from openrl.gateway.replies import future_reply
from openrl.protocol.custom_loss import MAX_GRAPH_BYTES, CreateCustomLossRequest, check_custom_loss
from openrl.store.base import RequestRow


async def create_custom_loss(call: Call) -> Response:
    """Check and keep a loss; its future has ended when it is answered."""
    gateway = call.gateway
    body = await read_body(call)
    if len(body) > MAX_GRAPH_BYTES:
        raise BadValue("bytes of the loss", len(body), f"at most {MAX_GRAPH_BYTES}", "too_large")
    request = parse_json(body, CreateCustomLossRequest)
    await find_active_session(call, request.session_id, "the custom loss")
    check_custom_loss(request)
    loss_id = await keep_loss(call, request.session_id, request)
    result = json.dumps({"loss_id": loss_id, "type": "create_custom_loss"}).encode()
    (result_ref,) = await asyncio.to_thread(gateway.blobs.put_payloads, [result])
    now = gateway.clock()
    row = RequestRow(
        request_id=gateway.new_id(),
        tenant_id=call.tenant_id,
        session_id=request.session_id,
        kind="create_custom_loss",
        dedupe_key=f"loss:{request.session_id}:{request.custom_loss_seq_id}",
        seq_id=request.custom_loss_seq_id,
        created_at=now,
        state="done",
        result_ref=result_ref,
        finished_at=now,
    )
    call.note(row)
    return future_reply(await gateway.store.enqueue(row, b""))


ROUTES = (Route("POST", "/create_custom_loss", create_custom_loss, body=CreateCustomLossRequest),)
