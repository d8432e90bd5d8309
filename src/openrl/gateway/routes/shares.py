"""Shares: tokens with which others read one checkpoint, until they expire or are revoked."""

import secrets

from starlette.responses import Response

from openrl.gateway.auth import hash_key
from openrl.gateway.body import read_json
from openrl.gateway.checkpoint_access import SHARE_PREFIX
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import actor_of
from openrl.gateway.replies import json_reply, no_content, show_time
from openrl.gateway.routes.checkpoints import ADDRESS, address_of
from openrl.protocol.paths import CheckpointPath
from openrl.protocol.tenants import CreateShareRequest
from openrl.store.base import Json
from openrl.store.identities import ShareRow


async def create_share(call: Call) -> Response:
    """A token for one checkpoint; it cannot be shown again.

    Its holder sends it as `weights_access_token` or X-Tinker-Weights-Access-Token to load, sample from, download or
    copy the checkpoint.
    """
    request = await read_json(call, CreateShareRequest)
    at, gateway = address_of(call), call.gateway
    token, now = SHARE_PREFIX + secrets.token_urlsafe(32), gateway.clock()
    share = ShareRow(
        token_hash=hash_key(token),
        tenant_id=call.tenant_id,
        run_id=at.run_id,
        kind=at.kind,
        name=at.name,
        created_at=now,
        expires_at=now + request.ttl_seconds,
        label=request.label,
    )
    await gateway.store.create_share(share, actor_of(call.identity))
    return json_reply({**_show(share), "token": token})


async def list_shares(call: Call) -> Response:
    """All of the tenant's, newest first, also those that are over; never their tokens."""
    return json_reply({"shares": [_show(share) for share in await call.gateway.store.list_shares(call.tenant_id)]})


async def revoke_share(call: Call) -> Response:
    """End a share at once. What was loaded or copied with it stays."""
    gateway = call.gateway
    await gateway.store.revoke_share(call.tenant_id, call.path["share_id"], gateway.clock(), actor_of(call.identity))
    return no_content()


def _show(share: ShareRow) -> Json:
    return {
        "share_id": share.share_id,
        "tinker_path": str(CheckpointPath(share.run_id, share.kind, share.name)),
        "label": share.label,
        "created_at": show_time(share.created_at),
        "expires_at": show_time(share.expires_at),
        "revoked_at": None if share.revoked_at is None else show_time(share.revoked_at),
    }


ROUTES = (
    Route("POST", f"{ADDRESS}/shares", create_share, body=CreateShareRequest),
    Route("GET", "/shares", list_shares, "read"),
    Route("DELETE", "/shares/{share_id}", revoke_share),
)
