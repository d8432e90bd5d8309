"""Saved weights as resources: listings, publication, expiry, deletion, weights_info."""

from starlette.responses import Response

from openrl.gateway.body import read_json
from openrl.gateway.checkpoint_access import find_checkpoint, read_manifest
from openrl.gateway.context import Call, Route
from openrl.gateway.query import MAX_PAGE, read_page
from openrl.gateway.replies import json_reply, no_content, show_checkpoint, show_cursor
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_kind, parse_checkpoint_name
from openrl.protocol.wire import CheckpointTtlRequest, WeightsInfoRequest, optimizer_config_of

ADDRESS = "/training_runs/{run_id}/checkpoints/{kind}/{name}"


def address_of(call: Call) -> CheckpointPath:
    """The checkpoint a URL names; raises InvalidRequest."""
    kind = parse_checkpoint_kind(call.path["kind"])
    return CheckpointPath(call.path["run_id"], kind, parse_checkpoint_name(call.path["name"]))


async def list_checkpoints(call: Call) -> Response:
    """All of the tenant's, newest first."""
    limit, offset = read_page(call.request, default_limit=100)
    page = await call.gateway.store.list_checkpoints(call.tenant_id, limit, offset)
    checkpoints = [show_checkpoint(row) for row in page.items]
    return json_reply({"checkpoints": checkpoints, "cursor": show_cursor(page, limit, offset)})


async def list_run_checkpoints(call: Call) -> Response:
    """All of one run, newest first; the listing is not paged by clients."""
    run = await call.gateway.store.get_run(call.tenant_id, call.path["run_id"])
    rows = await call.gateway.store.list_checkpoints(call.tenant_id, MAX_PAGE, 0, run.spec.run_id)
    while len(rows.items) < rows.total_count:
        offset = len(rows.items)
        more = await call.gateway.store.list_checkpoints(call.tenant_id, MAX_PAGE, offset, run.spec.run_id)
        if not more.items:
            break
        rows = type(rows)(rows.items + more.items, more.total_count)
    checkpoints = [show_checkpoint(row) for row in rows.items]
    return json_reply({"checkpoints": checkpoints, "cursor": show_cursor(rows, len(checkpoints), 0)})


async def delete_checkpoint(call: Call) -> Response:
    """Forget a checkpoint and free its bytes."""
    at = address_of(call)
    row = await call.gateway.store.delete_checkpoint(call.tenant_id, at.run_id, at.kind, at.name)
    await call.gateway.free_files(row.key)
    return no_content()


async def publish(call: Call) -> Response:
    """Let everybody read it; publishing twice is fine."""
    return await _set_public(call, True)


async def unpublish(call: Call) -> Response:
    """Keep it to its tenant again."""
    return await _set_public(call, False)


async def _set_public(call: Call, is_public: bool) -> Response:
    at = address_of(call)
    await call.gateway.store.update_checkpoint(call.tenant_id, at.run_id, at.kind, at.name, is_public=is_public)
    return no_content()


async def set_ttl(call: Call) -> Response:
    """Let it expire some seconds from now, or never."""
    request = await read_json(call, CheckpointTtlRequest)
    at = address_of(call)
    expires_at = "never" if request.ttl_seconds is None else call.gateway.clock() + request.ttl_seconds
    await call.gateway.store.update_checkpoint(call.tenant_id, at.run_id, at.kind, at.name, expires_at=expires_at)
    return no_content()


async def weights_info(call: Call) -> Response:
    """What a checkpoint holds; also of public ones of other tenants."""
    request = await read_json(call, WeightsInfoRequest)
    checkpoint = await find_checkpoint(call, request.tinker_path, request.weights_access_token)
    manifest = await read_manifest(call, checkpoint)
    return json_reply(
        {
            "base_model": manifest.base_model,
            "is_lora": True,
            "lora_rank": manifest.rank,
            "optimizer_config": optimizer_config_of(manifest.optimizer).model_dump(),
            "train_unembed": manifest.train_unembed,
            "train_mlp": manifest.train_mlp,
            "train_attn": manifest.train_attn,
        }
    )


ROUTES = (
    Route("GET", "/checkpoints", list_checkpoints, "read", query=("limit", "offset")),
    Route("GET", "/training_runs/{run_id}/checkpoints", list_run_checkpoints, "read"),
    Route("DELETE", ADDRESS, delete_checkpoint),
    Route("POST", f"{ADDRESS}/publish", publish),
    Route("DELETE", f"{ADDRESS}/publish", unpublish),
    Route("PUT", f"{ADDRESS}/ttl", set_ttl, body=CheckpointTtlRequest),
    Route("POST", "/weights_info", weights_info, "read", body=WeightsInfoRequest),
)
