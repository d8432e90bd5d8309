"""forward and forward_backward with JSON bodies, as SDKs before 0.25 send them.

What is queued is the protobuf body of the same request: the worker knows one form.
"""

import asyncio
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from openrl.catalog import BaseModelInfo
from openrl.config import GatewayConfig
from openrl.errors import InvalidRequest, NotFound
from openrl.gateway.admission import admit_forward_backward
from openrl.gateway.body import BodyTooLarge, parse_json, read_body, read_end
from openrl.gateway.context import Call, Route
from openrl.gateway.replies import JSON_TYPE, future_reply
from openrl.gateway.submission import admit_queued, find_run, new_request, refuse, refuse_address
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.json_datums import JsonForwardBackwardRequest, JsonForwardRequest, to_forward_backward
from openrl.protocol.oversized import MAX_END_BYTES, read_json_address
from openrl.protocol.runs import TrainingKind
from openrl.protocol.wire import RunAddress


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    return request.headers.get("content-type", "").startswith(JSON_TYPE)


async def forward(call: Call) -> Response:
    """Queue outputs of datums."""
    return await _submit(call, JsonForwardRequest)


async def forward_backward_from_json(call: Call) -> Response:
    """Queue gradients of datums."""
    return await _submit(call, JsonForwardBackwardRequest)


async def _submit(call: Call, form: type[JsonForwardRequest | JsonForwardBackwardRequest]) -> Response:
    kind: TrainingKind = "forward" if form is JsonForwardRequest else "forward_backward"
    try:
        body = await read_body(call)
    except BodyTooLarge as error:
        end = await read_end(call, error, MAX_END_BYTES)
        return await refuse_address(call, read_json_address(end), kind, error)
    address = await asyncio.to_thread(parse_json, body, RunAddress)
    run = await find_run(call, address.model_id)
    row = new_request(call, run, kind, address.seq_id)
    await admit_queued(call, row)
    model = call.gateway.catalog.get(run.spec.base_model)
    try:
        num_tokens, payload = await asyncio.to_thread(_admit, body, form, model, call.gateway.config)
    except (InvalidRequest, NotFound) as error:
        return await refuse(call, row, error)
    return future_reply(await call.gateway.store.enqueue(replace(row, num_tokens=num_tokens), payload))


def _admit(
    body: bytes,
    form: type[JsonForwardRequest | JsonForwardBackwardRequest],
    model: BaseModelInfo,
    config: GatewayConfig,
) -> tuple[int, bytes]:
    request = to_forward_backward(parse_json(body, form))
    return admit_forward_backward(request, model, config), encode_forward_backward(request)


ROUTES = (Route("POST", "/forward", forward, body=JsonForwardRequest),)
