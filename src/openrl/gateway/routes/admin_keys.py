"""API keys of the caller's tenant, for its admins."""

from starlette.responses import Response

from openrl.gateway.auth import hash_key, new_key
from openrl.gateway.body import read_json
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import actor_of
from openrl.gateway.replies import json_reply, no_content, show_time
from openrl.protocol.tenants import CreateKeyRequest, RotateKeyRequest
from openrl.store.base import Json
from openrl.store.identities import ApiKeyRow


async def create_key(call: Call) -> Response:
    """A key of the tenant, or of one of its users; it cannot be shown again."""
    request = await read_json(call, CreateKeyRequest)
    gateway = call.gateway
    key, now = new_key(), gateway.clock()
    row = ApiKeyRow(
        key_hash=hash_key(key),
        tenant_id=call.tenant_id,
        label=request.label,
        created_at=now,
        role=request.role,
        user_id=request.user_id or "",
        project_id=request.project_id,
        expires_at=None if request.ttl_seconds is None else now + request.ttl_seconds,
    )
    await gateway.store.identities.add_api_key(row, actor_of(call.identity))
    return json_reply({**_show(row), "key": key})


async def list_keys(call: Call) -> Response:
    """All keys of the tenant, oldest first; never the keys themselves."""
    keys = await call.gateway.store.identities.list_api_keys(call.tenant_id)
    return json_reply({"keys": [_show(key) for key in keys]})


async def rotate_key(call: Call) -> Response:
    """A new key with the same rights; the old one goes on for a while."""
    request = await read_json(call, RotateKeyRequest)
    gateway = call.gateway
    key = new_key()
    row = await gateway.store.identities.rotate_api_key(
        call.tenant_id,
        call.path["key_id"],
        hash_key(key),
        request.overlap_seconds,
        gateway.clock(),
        actor_of(call.identity),
    )
    return json_reply({**_show(row), "key": key})


async def revoke_key(call: Call) -> Response:
    """End a key at once, with every token that was exchanged for it."""
    gateway = call.gateway
    await gateway.store.identities.revoke_api_key(
        call.tenant_id, call.path["key_id"], gateway.clock(), actor_of(call.identity)
    )
    return no_content()


def _show(key: ApiKeyRow) -> Json:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")}
    return {
        "key_id": key.key_id,
        "label": key.label,
        "role": key.role,
        "user_id": key.user_id or None,
        "project_id": key.project_id,
        "replaced_by": key.replaced_by,
        **{name: None if at is None else show_time(at) for name, at in times.items()},
    }


ROUTES = (
    Route("POST", "/admin/keys", create_key, "admin", body=CreateKeyRequest),
    Route("GET", "/admin/keys", list_keys, "admin"),
    Route("POST", "/admin/keys/{key_id}/rotate", rotate_key, "admin", body=RotateKeyRequest),
    Route("DELETE", "/admin/keys/{key_id}", revoke_key, "admin"),
)
