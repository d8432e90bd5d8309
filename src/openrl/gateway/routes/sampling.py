"""Sampling sessions, and samples from them."""

from dataclasses import replace
from functools import partial

from starlette.responses import Response

from openrl.errors import BadValue, InvalidRequest
from openrl.gateway.active_session import find_active_session
from openrl.gateway.body import read_body, read_json
from openrl.gateway.checkpoint_access import find_checkpoint, read_manifest
from openrl.gateway.context import Call, Route
from openrl.gateway.replies import json_reply
from openrl.gateway.sample_admission import admit_sample
from openrl.gateway.sampling_header import with_header_params
from openrl.protocol.paths import sampling_session_id
from openrl.protocol.wire import CreateSamplingSessionRequest, SampleRequest
from openrl.sampling.vllm_rules import check as check_for_vllm
from openrl.store.base import RequestRow, SamplerRow
from openrl.store.object_keys import run_of_checkpoint


async def asample(call: Call) -> Response:
    """Queue continuations of a prompt.

    min_p and penalties may also come in the header X-OpenRL-Sampling-Params, a JSON object.
    """
    gateway = call.gateway
    request, body = with_header_params(call, await read_body(call))
    sampler_id = request.sampling_session_id
    sampler = await gateway.samplers.get(call.tenant_id, sampler_id, partial(_open_sampler, call))
    model = gateway.catalog.get(sampler.base_model)
    num_tokens = admit_sample(request, model, gateway.config)
    if gateway.samples_with_vllm:
        check_for_vllm(
            request.sampling_params,
            model.vocab_size,
            has_targets=request.target_prompt_logprobs is not None,
            num_alternatives=request.prompt_alt_tokens_k,
        )
    row = RequestRow(
        request_id=gateway.new_id(),
        tenant_id=call.tenant_id,
        session_id=sampler.session_id,
        kind="sample",
        dedupe_key=f"sampler:{sampler_id}:{request.seq_id}",
        seq_id=request.seq_id,
        created_at=gateway.clock(),
        sampler_id=sampler_id,
        base_model=sampler.base_model,
        num_tokens=num_tokens,
        num_sequences=request.num_samples,
        source_run_id=_source_run(sampler),
        trace_context=call.trace_context,
    )
    call.note(row)
    await gateway.quota_book.admit_queued(call.tenant_id, row.session_id, row.dedupe_key)
    stored = await gateway.store.enqueue(row, body)
    return _sample_reply(stored.request_id, request.num_samples)


def _source_run(sampler: SamplerRow) -> str:
    """The run whose weights these are; empty where another session's are sampled."""
    run_id = "" if sampler.adapter_key is None else run_of_checkpoint(sampler.adapter_key)
    return run_id if run_id.partition(":")[0] == sampler.session_id else ""


def _sample_reply(request_id: str, num_samples: int) -> Response:
    """Ids of the sequences are made from the request's: a retried submission gets the same ones."""
    sequence_ids = [f"{request_id}:{i}" for i in range(num_samples)]
    return json_reply({"request_id": request_id, "sample_sequence_ids": sequence_ids})


async def _open_sampler(call: Call, tenant_id: str, sampler_id: str) -> SamplerRow:
    """The sampler, unless its session is over; raises NotFound and InvalidRequest.

    Not SessionEnded: on a sampling request, clients take 410 for lost work and submit it again for ever.
    """
    sampler = await call.gateway.store.get_sampler(tenant_id, sampler_id)
    session = await call.gateway.store.get_session(tenant_id, sampler.session_id)
    if session.state != "active":
        message = f"session {session.session_id!r} of sampler {sampler_id!r} is {session.state}; make a new one"
        raise InvalidRequest(message, "session_ended", value=session.session_id, bound="an active session")
    return sampler


async def create_sampling_session(call: Call) -> Response:
    """A name for weights that never change: a saved adapter, or the base model alone."""
    request = await read_json(call, CreateSamplingSessionRequest)
    await find_active_session(call, request.session_id, "the sampler")
    row = SamplerRow(
        sampler_id=sampling_session_id(request.session_id, request.sampling_session_seq_id),
        tenant_id=call.tenant_id,
        session_id=request.session_id,
        base_model="",
        created_at=call.gateway.clock(),
        sampling_session_seq_id=request.sampling_session_seq_id,
    )
    if request.model_path is not None:
        row = await _with_adapter(call, row, request.model_path, request.weights_access_token)
    elif request.base_model is not None:
        row = replace(row, base_model=call.gateway.catalog.get(request.base_model).name)
    else:
        raise InvalidRequest("give model_path or base_model", "missing")
    stored = await call.gateway.store.create_sampler(row)
    return json_reply({"type": "create_sampling_session", "sampling_session_id": stored.sampler_id})


async def _with_adapter(call: Call, row: SamplerRow, model_path: str, access_token: str | None) -> SamplerRow:
    checkpoint = await find_checkpoint(call, model_path, access_token)
    if checkpoint.kind != "sampler_weights":
        bound = "sampler_weights, which save_weights_for_sampler makes"
        raise BadValue(f"{model_path}: kind", checkpoint.kind, bound, "wrong_kind")
    manifest = await read_manifest(call, checkpoint)
    base_model = call.gateway.catalog.get(manifest.base_model).name
    return replace(row, base_model=base_model, model_path=model_path, adapter_key=checkpoint.key)


async def get_sampler(call: Call) -> Response:
    """What a sampling session samples from."""
    sampler = await call.gateway.store.get_sampler(call.tenant_id, call.path["sampler_id"])
    content = {"sampler_id": sampler.sampler_id, "base_model": sampler.base_model}
    if sampler.model_path is not None:
        content["model_path"] = sampler.model_path
    return json_reply(content)


ROUTES = (
    Route("POST", "/asample", asample, body=SampleRequest),
    Route("POST", "/create_sampling_session", create_sampling_session, body=CreateSamplingSessionRequest),
    Route("GET", "/samplers/{sampler_id}", get_sampler, "read"),
)
