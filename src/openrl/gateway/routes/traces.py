"""Session traces: asked for until they are built, then fetched by a link that needs no key."""

import asyncio
from urllib.parse import quote

from starlette.responses import FileResponse, Response

from openrl.errors import OpenRLError
from openrl.gateway.context import Call, Route
from openrl.gateway.download_links import DownloadGrant, open_grant, sign_grant, wrong_link
from openrl.gateway.replies import json_reply
from openrl.gateway.trace_exports import TRACE_FILE
from openrl.store.object_keys import trace_key

LINK_LIFETIME_S = 3600.0
_WAIT_S = 2.0
"""Clients ask every 5 s: what is built sooner is answered at once."""
_GRANT_KIND = "trace"


async def export_trace(call: Call) -> Response:
    """The link, or the advice to ask again."""
    gateway = call.gateway
    session = await gateway.store.get_session(call.tenant_id, call.path["session_id"])
    try:
        is_ready = await gateway.traces.is_ready(call.tenant_id, session.session_id, _WAIT_S)
    except OpenRLError as error:
        return json_reply({"status": "failed", "error": str(error)})
    if not is_ready:
        return json_reply({"status": "pending"})
    expires_at = gateway.clock() + LINK_LIFETIME_S
    grant = DownloadGrant(call.tenant_id, session.session_id, _GRANT_KIND, TRACE_FILE, expires_at)
    token = sign_grant(grant, gateway.signing_key)
    return json_reply({"status": "ready", "url": f"{call.request.base_url}api/v1/traces/{quote(token)}"})


async def download_trace(call: Call) -> Response:
    """The file that a link is for."""
    gateway = call.gateway
    grant = open_grant(call.path["token"], gateway.signing_key, gateway.clock())
    if grant.kind != _GRANT_KIND:
        raise wrong_link(grant, "trace")
    path = await asyncio.to_thread(gateway.blobs.open_path, trace_key(grant.run_id), TRACE_FILE)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{grant.run_id}.pftrace")


ROUTES = (
    Route("GET", "/sessions/{session_id}/trace_export", export_trace, "read"),
    Route("GET", "/traces/{token}", download_trace, "read", is_public=True),
)
