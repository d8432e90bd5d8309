"""Downloads of adapters: a link that needs no key, and the tar archive behind it (tinker-api §5.6)."""

import asyncio
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from openrl.errors import InvalidRequest
from openrl.gateway.archive import stream_tar, tar_size
from openrl.gateway.checkpoint_access import granted, look_up
from openrl.gateway.context import Call, Gateway, Route
from openrl.gateway.download_links import (
    DownloadGrant,
    check_version,
    open_grant,
    sign_grant,
    version_of,
    wrong_link,
)
from openrl.gateway.routes.checkpoints import ADDRESS, address_of
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_kind
from openrl.store.base import CheckpointRow

MARKER = "checkpoint_complete"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


async def archive(call: Call) -> Response:
    """Redirects to a link that can be fetched without a key for a while."""
    at = address_of(call)
    gateway = call.gateway
    found = await look_up(call, at)
    await asyncio.to_thread(_sizes, gateway, found.row)
    expires_at = gateway.clock() + gateway.config.download_link_s
    version = version_of(found.row.key)
    grant = DownloadGrant(found.tenant_id, at.run_id, at.kind, at.name, expires_at, share=found.share, version=version)
    token = sign_grant(grant, gateway.signing_key)
    link = str(call.request.base_url) + "api/v1/archives/" + quote(token)
    expires = format_datetime(datetime.fromtimestamp(expires_at, UTC), usegmt=True)
    return Response(status_code=302, headers={"Location": link, "Expires": expires})


async def download(call: Call) -> Response:
    """The adapter in PEFT's format as an uncompressed tar."""
    gateway = call.gateway
    grant = open_grant(call.path["token"], gateway.signing_key, gateway.clock())
    if grant.file:
        raise wrong_link(grant, "archive")
    row = await granted(gateway, grant, parse_checkpoint_kind(grant.kind))
    check_version(grant, row.key)
    sizes = await asyncio.to_thread(_sizes, gateway, row)
    paths = await asyncio.to_thread(_paths, gateway, row, sizes)
    file_name = f"{grant.kind}-{grant.name}.tar"
    headers = {
        "Content-Length": str(tar_size(sizes)),
        "Content-Disposition": f'attachment; filename="{file_name}"',
    }
    pieces = stream_tar(paths, sizes, int(row.created_at))
    return StreamingResponse(pieces, media_type="application/x-tar", headers=headers)


def _sizes(gateway: Gateway, row: CheckpointRow) -> dict[str, int]:
    """Sizes of the archive's files; raises NotFound, and InvalidRequest for what is not an adapter."""
    stored = gateway.blobs.list_object(row.key)
    missing = [name for name in _ADAPTER_FILES if name not in stored]
    if missing:
        path = CheckpointPath(row.run_id, row.kind, row.name)
        raise InvalidRequest(
            f"{path} lacks {', '.join(missing)}, of which an archive is made", "missing", value=str(path)
        )
    return {**{name: stored[name] for name in _ADAPTER_FILES}, MARKER: 0}


def _paths(gateway: Gateway, row: CheckpointRow, sizes: dict[str, int]) -> dict[str, Path | None]:
    return {name: None if name == MARKER else Path(gateway.blobs.open_path(row.key, name)) for name in sizes}


ROUTES = (
    Route("GET", f"{ADDRESS}/archive", archive, "read"),
    Route("GET", "/archives/{token}", download, "read", is_public=True),
)
