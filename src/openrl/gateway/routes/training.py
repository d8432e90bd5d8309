"""forward_backward, optim_step and the saves: requests in the order of their run's numbers."""

import asyncio
from dataclasses import replace

from starlette.responses import Response

from openrl.errors import BadValue, InvalidRequest, NotFound
from openrl.gateway.admission import admit_forward_backward, admit_optim_step, check_sampler_save
from openrl.gateway.body import BodyTooLarge, read_body
from openrl.gateway.checkpoint_access import check_name_is_free
from openrl.gateway.context import Call, Route
from openrl.gateway.custom_losses import find_loss
from openrl.gateway.metadata import check_metadata
from openrl.gateway.replies import future_reply
from openrl.gateway.routes.json_forward import forward_backward_from_json, is_json
from openrl.gateway.submission import admit_queued, find_run, new_request, refuse, refuse_address, submit_json
from openrl.protocol.codec import decode_forward_backward, decode_run_and_seq_id
from openrl.protocol.custom_loss import read_loss_id
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.json_datums import JsonForwardBackwardRequest
from openrl.protocol.losses import CUSTOM
from openrl.protocol.oversized import read_address
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_name
from openrl.protocol.wire import OptimStepRequest, SaveWeightsForSamplerRequest, SaveWeightsRequest
from openrl.store.base import RunRow

_INLINE_BYTES = 2**16
"""Larger bodies are decoded and checked in a thread, so that they do not hold up other requests."""


async def forward_backward(call: Call) -> Response:
    """Queue gradients, or only outputs, of datums."""
    if is_json(call.request):
        return await forward_backward_from_json(call)
    try:
        body = await read_body(call, is_json=False)
    except BodyTooLarge as error:
        return await refuse_address(call, read_address(error.start), "forward_backward", error)
    try:
        request = await _decode(body, call.gateway.config.max_datums)
    except InvalidRequest as error:
        address = await asyncio.to_thread(decode_run_and_seq_id, body)
        return await refuse_address(call, address, "forward_backward", error)
    _check_seq_id(request.seq_id)
    run = await find_run(call, request.run_id)
    row = new_request(call, run, "forward" if request.is_forward_only else "forward_backward", request.seq_id)
    await admit_queued(call, row)
    try:
        request = await _with_custom_loss(call, run, request)
        num_tokens = await _admit(call, run, request, len(body))
    except (InvalidRequest, NotFound) as error:
        return await refuse(call, row, error)
    return future_reply(await call.gateway.store.enqueue(replace(row, num_tokens=num_tokens), body))


async def _decode(body: bytes, max_datums: int) -> ForwardBackwardInput:
    if len(body) <= _INLINE_BYTES:
        return decode_forward_backward(body, max_datums)
    return await asyncio.to_thread(decode_forward_backward, body, max_datums)


async def _with_custom_loss(call: Call, run: RunRow, request: ForwardBackwardInput) -> ForwardBackwardInput:
    """The request with the loss that it names, where that is one of the tenant's own."""
    if request.loss_fn != CUSTOM:
        return request
    loss_id = read_loss_id(request.loss_fn_config)
    return replace(request, custom_loss=await find_loss(call, run.session_id, loss_id))


async def _admit(call: Call, run: RunRow, request: ForwardBackwardInput, num_bytes: int) -> int:
    model = call.gateway.catalog.get(run.spec.base_model)
    if num_bytes <= _INLINE_BYTES:
        return admit_forward_backward(request, model, call.gateway.config)
    return await asyncio.to_thread(admit_forward_backward, request, model, call.gateway.config)


def _check_seq_id(seq_id: int) -> None:
    if seq_id < 1:
        raise BadValue("seq_id", seq_id, "at least 1")


async def optim_step(call: Call) -> Response:
    """Queue one optimizer step."""
    return await submit_json(call, await read_body(call), "optim_step", OptimStepRequest, _admit_optim_step)


async def _admit_optim_step(_: Call, run: RunRow, request: OptimStepRequest, body: bytes) -> bytes:
    admit_optim_step(request, run.spec.optimizer)
    return body


async def save_weights(call: Call) -> Response:
    """Queue a training checkpoint: weights and optimizer state."""
    return await submit_json(call, await read_body(call), "save_weights", SaveWeightsRequest, _admit_save)


async def _admit_save(call: Call, run: RunRow, request: SaveWeightsRequest, body: bytes) -> bytes:
    check_metadata(request.user_metadata)
    await call.gateway.quota_book.admit_save(call.tenant_id, run.session_id)
    path = CheckpointPath(run.spec.run_id, "weights", parse_checkpoint_name(request.path))
    if not request.overwrite:
        await check_name_is_free(call, path)
    return body


async def save_weights_for_sampler(call: Call) -> Response:
    """Queue a sampler checkpoint, named, or unnamed with a sampling session of its own."""
    return await submit_json(
        call, await read_body(call), "save_weights_for_sampler", SaveWeightsForSamplerRequest, _admit_sampler_save
    )


async def _admit_sampler_save(call: Call, run: RunRow, request: SaveWeightsForSamplerRequest, body: bytes) -> bytes:
    check_sampler_save(request)
    check_metadata(request.user_metadata)
    await call.gateway.quota_book.admit_save(call.tenant_id, run.session_id)
    if request.path is not None:
        path = CheckpointPath(run.spec.run_id, "sampler_weights", parse_checkpoint_name(request.path))
        await check_name_is_free(call, path)
    return body


ROUTES = (
    Route("POST", "/forward_backward", forward_backward, body=JsonForwardBackwardRequest, is_protobuf=True),
    Route("POST", "/optim_step", optim_step, body=OptimStepRequest),
    Route("POST", "/save_weights", save_weights, body=SaveWeightsRequest),
    Route("POST", "/save_weights_for_sampler", save_weights_for_sampler, body=SaveWeightsForSamplerRequest),
)
