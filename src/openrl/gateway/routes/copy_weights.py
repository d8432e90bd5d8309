"""Copies of checkpoints: another owner, project and lifetime over the same files."""

from starlette.responses import Response

from openrl.errors import InvalidRequest
from openrl.gateway.active_session import find_active_session
from openrl.gateway.body import read_json
from openrl.gateway.checkpoint_access import find_checkpoint, read_manifest
from openrl.gateway.context import Call, Route
from openrl.gateway.idempotency import idempotency_key
from openrl.gateway.replies import json_reply
from openrl.protocol.paths import CheckpointPath, training_run_id
from openrl.protocol.runs import RunSpec
from openrl.protocol.wire import AdapterManifest, CopyWeightsRequest, OptimizerConfig
from openrl.store.base import CheckpointRow, RunRow, SessionRow


async def copy_weights(call: Call) -> Response:
    """A checkpoint of the same kind and name in a run of its own, which cannot be trained."""
    request = await read_json(call, CopyWeightsRequest)
    source = await find_checkpoint(call, request.source_path, request.weights_access_token)
    manifest = await read_manifest(call, source)
    session = await _new_session(call, request)
    run = _closed_run(call, request, manifest, session)
    copy = CheckpointRow(
        run_id=run.spec.run_id,
        kind=source.kind,
        name=source.name,
        tenant_id=call.tenant_id,
        key=source.key,
        size_bytes=source.size_bytes,
        created_at=run.created_at,
        expires_at=None if request.ttl_seconds is None else run.created_at + request.ttl_seconds,
        user_metadata=source.user_metadata,
    )
    book = call.gateway.quota_book
    project_id = await book.project_of(call.tenant_id, run.session_id) if session is None else session.project_id
    max_stored = await book.bound(call.tenant_id, project_id, "stored_bytes")
    stored = await call.gateway.store.copy_checkpoint(copy, run, session, max_stored)
    return json_reply({"tinker_path": str(CheckpointPath(stored.run_id, stored.kind, stored.name))})


async def _new_session(call: Call, request: CopyWeightsRequest) -> SessionRow | None:
    """A session that has ended already, in the given project; None for a copy into one that is there."""
    if request.session_id is not None and request.model_seq_id is not None:
        await find_active_session(call, request.session_id, "the copy")
        return None
    if request.destination_project_id is None:
        raise InvalidRequest("give destination_project_id, or session_id and model_seq_id", "missing")
    now = call.gateway.clock()
    return SessionRow(
        session_id=call.gateway.new_id(),
        tenant_id=call.tenant_id,
        created_at=now,
        last_heartbeat_at=now,
        project_id=request.destination_project_id,
        state="finished",
        end_reason="success: made to hold a copy",
        idempotency_key=idempotency_key(call),
    )


def _closed_run(
    call: Call, request: CopyWeightsRequest, manifest: AdapterManifest, session: SessionRow | None
) -> RunRow:
    session_id, number = (session.session_id, 0) if session is not None else (request.session_id, request.model_seq_id)
    assert session_id is not None
    assert number is not None
    now = call.gateway.clock()
    return RunRow(
        spec=RunSpec(
            run_id=training_run_id(session_id, number),
            tenant_id=call.tenant_id,
            base_model=manifest.base_model,
            rank=manifest.rank,
            seed=manifest.seed,
            train_attn=manifest.train_attn,
            train_mlp=manifest.train_mlp,
            train_unembed=manifest.train_unembed,
        ),
        session_id=session_id,
        model_seq_id=number,
        created_at=now,
        last_request_at=now,
        optimizer_config=OptimizerConfig().model_dump(),
        is_closed=True,
        copied_from=request.source_path,
    )


ROUTES = (Route("POST", "/copy_weights", copy_weights, body=CopyWeightsRequest),)
