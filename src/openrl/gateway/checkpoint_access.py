"""Finds checkpoints by path, and reads what their files say about themselves."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.gateway.auth import hash_key, identity_of
from openrl.gateway.context import NOBODY, Call, Gateway
from openrl.gateway.download_links import DownloadGrant
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_path
from openrl.protocol.runs import CheckpointKind
from openrl.protocol.wire import AdapterManifest
from openrl.store.base import CheckpointRow

MANIFEST_FILE = "openrl.json"
SHARE_PREFIX = "share-"
_TOKEN_HEADER = "x-tinker-weights-access-token"  # noqa: S105 a name


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint, and whom a link to it must be good for: a tenant, or a share."""

    row: CheckpointRow
    tenant_id: str
    share: str = ""


async def find_checkpoint(call: Call, path: str, access_token: str | None = None) -> CheckpointRow:
    """The tenant's own, a public one, or one that the owner of a weights access token can read. Raises NotFound.

    The token comes in the body (`access_token`) or in a header. It is that of a share, or another credential.
    """
    return (await look_up(call, parse_checkpoint_path(path), access_token)).row


async def look_up(call: Call, at: CheckpointPath, access_token: str | None = None) -> Found:
    """The same, with whom it was found for."""
    token = access_token or call.request.headers.get(_TOKEN_HEADER)
    if token is not None:
        with suppress(NotFound):
            return await _look_up_with(call, at, token)
    row = await call.gateway.store.get_checkpoint(call.tenant_id, at.run_id, at.kind, at.name)
    return Found(row, call.tenant_id)


async def granted(gateway: Gateway, grant: DownloadGrant, kind: CheckpointKind) -> CheckpointRow:
    """The checkpoint of a link; raises NotFound also when it may be read no longer."""
    if not grant.share:
        return await gateway.store.get_checkpoint(grant.tenant_id, grant.run_id, kind, grant.name)
    try:
        return await gateway.store.shared_checkpoint(grant.share, grant.run_id, kind, grant.name)
    except Unauthorized:
        raise NotFound("this download link is no longer valid: its share is over") from None


async def _look_up_with(call: Call, at: CheckpointPath, token: str) -> Found:
    """What the token can read; raises Unauthorized that tells it from the caller's own key."""
    try:
        if token.startswith(SHARE_PREFIX):
            share = hash_key(token)
            shared = await call.gateway.store.shared_checkpoint(share, at.run_id, at.kind, at.name)
            return Found(shared, "", share)
        reader = await identity_of(token, call.view(NOBODY))
    except Unauthorized as error:
        raise Unauthorized(f"the weights access token is refused: {error}") from None
    row = await call.view(reader).store.get_checkpoint(reader.tenant_id, at.run_id, at.kind, at.name)
    return Found(row, reader.tenant_id)


async def check_name_is_free(call: Call, path: CheckpointPath) -> None:
    """A taken name is an error of the request, never 409: clients retry that for minutes (tinker-api P9)."""
    try:
        await call.gateway.store.get_checkpoint(call.tenant_id, path.run_id, path.kind, path.name)
    except NotFound:
        return
    message = f"checkpoint {path} exists already; choose another name or delete it first"
    raise InvalidRequest(message, "name_taken", value=path.name, bound="a name that is free")


async def read_manifest(call: Call, checkpoint: CheckpointRow) -> AdapterManifest:
    """Raises NotFound when the files are gone, InvalidRequest when they are not an adapter of ours."""
    return await asyncio.to_thread(_read_manifest, call, checkpoint)


def _read_manifest(call: Call, checkpoint: CheckpointRow) -> AdapterManifest:
    path = CheckpointPath(checkpoint.run_id, checkpoint.kind, checkpoint.name)
    content = Path(call.gateway.blobs.open_path(checkpoint.key, MANIFEST_FILE)).read_bytes()
    try:
        return AdapterManifest.model_validate_json(content)
    except ValidationError:
        message = f"{path}: its {MANIFEST_FILE} is not one that this server can read; save it again"
        raise InvalidRequest(message, "malformed", value=str(path), bound="one of format 1") from None
