"""Weights for other tools: queued saves, and links to their files that need no key (tinker-api §5.6)."""

import asyncio
import os
from pathlib import Path
from urllib.parse import quote

from starlette.responses import FileResponse, Response

from openrl.errors import BadValue, InvalidRequest, NotFound
from openrl.gateway.body import read_body
from openrl.gateway.checkpoint_access import MANIFEST_FILE, Found, check_name_is_free, granted, look_up
from openrl.gateway.context import Call, Gateway, Route
from openrl.gateway.download_links import (
    DownloadGrant,
    check_version,
    open_grant,
    sign_grant,
    version_of,
    wrong_link,
)
from openrl.gateway.replies import json_reply, show_time
from openrl.gateway.routes.checkpoints import ADDRESS, address_of
from openrl.gateway.submission import submit_json
from openrl.protocol.age_files import parse_recipient
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_name
from openrl.protocol.wire import SaveWeightsExternalRequest
from openrl.store.base import CheckpointRow, RunRow


async def save_weights_external(call: Call) -> Response:
    """Queue files that other tools read."""
    return await submit_json(
        call, await read_body(call), "save_weights_external", SaveWeightsExternalRequest, _admit_save
    )


async def _admit_save(call: Call, run: RunRow, request: SaveWeightsExternalRequest, body: bytes) -> bytes:
    if request.age_encryption_recipients == ():
        message = "age_encryption_recipients is empty; leave it out to store the files as they are"
        raise InvalidRequest(message, "out_of_range", value=[], bound="left out, or 1 to 10 recipients")
    for recipient in request.age_encryption_recipients or ():
        parse_recipient(recipient)
    await call.gateway.quota_book.admit_save(call.tenant_id, run.session_id)
    await check_name_is_free(
        call, CheckpointPath(run.spec.run_id, "external_weights", parse_checkpoint_name(request.path))
    )
    return body


async def external_weights_urls(call: Call) -> Response:
    """A link for each file, good for a while without a key; every call signs new ones."""
    at, gateway = address_of(call), call.gateway
    if at.kind != "external_weights":
        raise BadValue(f"{at}: kind", at.kind, "external_weights, which have links to single files", "wrong_kind")
    found = await look_up(call, at)
    sizes = await asyncio.to_thread(gateway.blobs.list_object, found.row.key)
    expires_at = gateway.clock() + gateway.config.download_link_s
    urls = {name: _link(call, found, name, expires_at) for name in sizes if name != MANIFEST_FILE}
    return json_reply({"urls": urls, "expires": show_time(expires_at)})


def _link(call: Call, found: Found, file: str, expires_at: float) -> str:
    row = found.row
    version = version_of(row.key)
    grant = DownloadGrant(found.tenant_id, row.run_id, row.kind, row.name, expires_at, file, found.share, version)
    token = sign_grant(grant, call.gateway.signing_key)
    return f"{call.request.base_url}api/v1/external_weights/{quote(token)}"


async def download(call: Call) -> Response:
    """One file, streamed from disk."""
    gateway = call.gateway
    grant = open_grant(call.path["token"], gateway.signing_key, gateway.clock())
    if not grant.file:
        raise wrong_link(grant, "file of external weights")
    row = await granted(gateway, grant, "external_weights")
    check_version(grant, row.key)
    path, status = await asyncio.to_thread(_find, gateway, row, grant.file)
    return FileResponse(path, media_type="application/octet-stream", filename=path.name, stat_result=status)


def _find(gateway: Gateway, row: CheckpointRow, file: str) -> tuple[Path, os.stat_result]:
    path = Path(gateway.blobs.open_path(row.key, file))
    try:
        return path, path.stat()
    except FileNotFoundError:  # deleted in this moment
        raise NotFound.of("file", file) from None


ROUTES = (
    Route("POST", "/save_weights_external", save_weights_external, body=SaveWeightsExternalRequest),
    Route("GET", f"{ADDRESS}/external_weights_urls", external_weights_urls, "read"),
    Route("GET", "/external_weights/{token}", download, "read", is_public=True),
)
