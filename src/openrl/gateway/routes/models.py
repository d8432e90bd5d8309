"""Training runs as they come and go: create_model, load_weights, get_info, unload_model."""

from dataclasses import replace

from starlette.responses import Response

from openrl.errors import BadValue, InvalidRequest, QuotaExceeded
from openrl.gateway.active_session import find_active_session
from openrl.gateway.admission import admit_lora, admit_optimizer, check_load, check_moments, check_rank
from openrl.gateway.body import parse_json, read_body, read_json
from openrl.gateway.checkpoint_access import find_checkpoint, read_manifest
from openrl.gateway.context import Call, Route
from openrl.gateway.metadata import check_metadata
from openrl.gateway.replies import future_reply, json_reply
from openrl.gateway.submission import new_request, submit_json
from openrl.protocol.paths import training_run_id
from openrl.protocol.runs import RunSpec
from openrl.protocol.wire import (
    AdapterManifest,
    CreateModelRequest,
    LoadWeightsPayload,
    LoadWeightsRequest,
    OptimizerConfig,
    RunRequest,
    optimizer_config_of,
)
from openrl.store.base import CheckpointRow, Json, RequestRow, RunRow

_UNLOAD_TRIES = 1000


async def create_model(call: Call) -> Response:
    """A new run with a fresh adapter."""
    body = await read_body(call)
    request = parse_json(body, CreateModelRequest)
    family = admit_optimizer(request.optimizer_config)
    lora = admit_lora(request.lora_config, call.gateway.config)
    base_model = call.gateway.catalog.get(request.base_model).name
    spec = RunSpec(
        run_id=training_run_id(request.session_id, request.model_seq_id),
        tenant_id=call.tenant_id,
        base_model=base_model,
        rank=lora.rank,
        seed=call.gateway.new_seed() if lora.seed is None else lora.seed,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
        optimizer=family,
    )
    run = await _new_run(
        call, spec, request.session_id, request.model_seq_id, request.optimizer_config, request.user_metadata
    )
    return await _create(call, run, new_request(call, run, "create_model", 0), body)


async def load_weights(call: Call) -> Response:
    """A new run from a checkpoint or, with `model_id`, a checkpoint into a run."""
    body = await read_body(call)
    request = parse_json(body, LoadWeightsRequest)
    if request.model_id is not None:
        return await submit_json(call, body, "load_weights", LoadWeightsRequest, _admit_load, _object_of)
    return await _create_from_checkpoint(call, request)


async def _create_from_checkpoint(call: Call, request: LoadWeightsRequest) -> Response:
    if request.session_id is None or request.model_seq_id is None:
        raise InvalidRequest("give model_id and seq_id, or session_id and model_seq_id", "missing")
    checkpoint, manifest = await _resolve(call, request)
    check_rank(manifest.rank, call.gateway.config)
    kept = optimizer_config_of(manifest.optimizer if request.optimizer else "adamw")
    optimizer = request.optimizer_config or kept
    spec = RunSpec(
        run_id=training_run_id(request.session_id, request.model_seq_id),
        tenant_id=call.tenant_id,
        base_model=call.gateway.catalog.get(manifest.base_model).name,
        rank=manifest.rank,
        seed=manifest.seed,
        train_attn=manifest.train_attn,
        train_mlp=manifest.train_mlp,
        train_unembed=manifest.train_unembed,
        optimizer=admit_optimizer(optimizer),
    )
    run = await _new_run(call, spec, request.session_id, request.model_seq_id, optimizer, request.user_metadata)
    row = replace(new_request(call, run, "load_weights", 0), object_key=checkpoint.key)
    return await _create(call, run, row, _load_payload(request, checkpoint))


async def _create(call: Call, run: RunRow, row: RequestRow, payload: bytes) -> Response:
    """Store a run with its request 0; raises QuotaReached when there are too many."""
    book = call.gateway.quota_book
    project_id = await book.project_of(call.tenant_id, run.session_id)
    max_live = await book.bound(call.tenant_id, project_id, "live_runs")
    _, stored = await call.gateway.store.create_run(run, row, payload, max_live)
    return future_reply(stored)


async def _admit_load(call: Call, run: RunRow, request: LoadWeightsRequest, _: bytes) -> bytes:
    checkpoint, manifest = await _resolve(call, request)
    spec = run.spec
    here = (spec.base_model, spec.rank, spec.train_attn, spec.train_mlp, spec.train_unembed)
    there = (manifest.base_model, manifest.rank, manifest.train_attn, manifest.train_mlp, manifest.train_unembed)
    if here != there:
        names = "(base model, rank, train_attn, train_mlp, train_unembed)"
        bound = f"{here}, as run {spec.run_id} has it"
        raise BadValue(f"{names} of {request.path}", there, bound, "wrong_shape")
    check_moments(manifest, request.path, spec.optimizer, with_optimizer=request.optimizer)
    return _load_payload(request, checkpoint)


async def _resolve(call: Call, request: LoadWeightsRequest) -> tuple[CheckpointRow, AdapterManifest]:
    """The checkpoint a load asks for, and its shape; raises InvalidRequest and NotFound."""
    checkpoint = await find_checkpoint(call, request.path, request.weights_access_token)
    if checkpoint.kind != "weights":
        bound = "weights, which save_state makes"
        raise BadValue(f"{request.path}: kind", checkpoint.kind, bound, "wrong_kind")
    manifest = await read_manifest(call, checkpoint)
    check_load(manifest, request.path, with_optimizer=request.optimizer, base_model=request.base_model)
    if request.optimizer_config is not None:
        family = admit_optimizer(request.optimizer_config)
        check_moments(manifest, request.path, family, with_optimizer=request.optimizer)
    return checkpoint, manifest


def _load_payload(request: LoadWeightsRequest, checkpoint: CheckpointRow) -> bytes:
    payload = LoadWeightsPayload(key=checkpoint.key, optimizer=request.optimizer, path=request.path)
    return payload.model_dump_json().encode()


def _object_of(payload: bytes) -> str:
    return LoadWeightsPayload.model_validate_json(payload).key


async def _new_run(
    call: Call,
    spec: RunSpec,
    session_id: str,
    model_seq_id: int,
    optimizer: OptimizerConfig,
    user_metadata: Json | None,
) -> RunRow:
    """The row of a run that starts; raises SessionEnded and NotFound for its session."""
    await find_active_session(call, session_id, "the training run")
    now = call.gateway.clock()
    return RunRow(
        spec=spec,
        session_id=session_id,
        model_seq_id=model_seq_id,
        created_at=now,
        last_request_at=now,
        optimizer_config=optimizer.model_dump(),
        user_metadata=check_metadata(user_metadata),
    )


async def get_info(call: Call) -> Response:
    """What a run trains."""
    request = await read_json(call, RunRequest)
    run = await call.gateway.store.get_run(call.tenant_id, request.model_id)
    model = call.gateway.catalog.get(run.spec.base_model)
    return json_reply(
        {
            "type": "get_info",
            "model_id": run.spec.run_id,
            "model_data": {"arch": model.architecture, "model_name": model.name, "tokenizer_id": model.name},
            "model_name": model.name,
            "is_lora": True,
            "lora_rank": run.spec.rank,
            "optimizer_config": run.optimizer_config,
        }
    )


async def unload_model(call: Call) -> Response:
    """Queue the end of a run. Its body has no number: it takes the first that is free."""
    body = await read_body(call)
    request = parse_json(body, RunRequest)
    run = await call.gateway.store.get_run(call.tenant_id, request.model_id)
    first, finished = await call.gateway.store.free_seq_ids(call.tenant_id, request.model_id)
    row = new_request(call, run, "unload_model", first)
    for seq_id in range(first, first + _UNLOAD_TRIES + len(finished)):
        if seq_id in finished:
            continue
        numbered = replace(row, seq_id=seq_id, dedupe_key=f"run:{run.spec.run_id}:{seq_id}")
        stored = await call.gateway.store.enqueue(numbered, body)
        if stored.kind == "unload_model":
            return future_reply(stored)
    message = f"more than {_UNLOAD_TRIES} requests of run {run.spec.run_id} are waiting; unload it later"
    raise QuotaExceeded(message, value=run.spec.run_id, bound=f"a run with at most {_UNLOAD_TRIES} waiting requests")


ROUTES = (
    Route("POST", "/create_model", create_model, body=CreateModelRequest),
    Route("POST", "/load_weights", load_weights, body=LoadWeightsRequest),
    Route("POST", "/get_info", get_info, "read", body=RunRequest),
    Route("POST", "/unload_model", unload_model, body=RunRequest),
)
