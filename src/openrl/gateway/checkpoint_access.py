"""Finds checkpoints by path, and reads what their files say about themselves."""

import asyncio
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from openrl.errors import InvalidRequest, NotFound, Unauthorized
from openrl.gateway.auth import tenant_of
from openrl.gateway.context import Call
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_path
from openrl.protocol.wire import AdapterManifest
from openrl.store.base import CheckpointRow

MANIFEST_FILE = "openrl.json"


async def find_checkpoint(call: Call, path: str, access_token: str | None = None) -> CheckpointRow:
    """The tenant's own, a public one, or one that the owner of a weights access token can read. Raises NotFound.

    The token comes in the body (`access_token`) or in a header.
    """
    address = parse_checkpoint_path(path)
    token = access_token or call.request.headers.get("x-tinker-weights-access-token")
    readers = [call.tenant_id] if token is None else [await _reader_of(call, token), call.tenant_id]
    for reader in readers:
        with suppress(NotFound):
            return await call.gateway.store.get_checkpoint(reader, address.run_id, address.kind, address.name)
    raise NotFound.of("checkpoint", str(address))


async def _reader_of(call: Call, token: str) -> str:
    """The tenant of the token; raises Unauthorized that tells it from the caller's own key."""
    try:
        return await tenant_of(token, call.gateway)
    except Unauthorized as error:
        raise Unauthorized(f"the weights access token is refused: {error}") from None


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
