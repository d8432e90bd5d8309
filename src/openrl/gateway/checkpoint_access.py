"""Finds checkpoints by path, and reads what their files say about themselves."""

import asyncio
from pathlib import Path

from pydantic import ValidationError

from openrl.errors import InvalidRequest, NotFound
from openrl.gateway.auth import tenant_of
from openrl.gateway.context import Call
from openrl.protocol.paths import CheckpointPath, parse_checkpoint_path
from openrl.protocol.wire import AdapterManifest
from openrl.store.base import CheckpointRow

MANIFEST_FILE = "openrl.json"


async def find_checkpoint(call: Call, path: str, access_token: str | None = None) -> CheckpointRow:
    """The tenant's own, a public one, or one that the owner of `access_token` can read. Raises NotFound."""
    address = parse_checkpoint_path(path)
    store = call.gateway.store
    reader = call.tenant_id if access_token is None else await tenant_of(access_token, call.gateway)
    try:
        return await store.get_checkpoint(reader, address.run_id, address.kind, address.name)
    except NotFound:
        raise NotFound(f"checkpoint {address} does not exist") from None


async def checkpoint_exists(call: Call, address: CheckpointPath) -> bool:
    """Whether the tenant's run has saved under this name."""
    try:
        await call.gateway.store.get_checkpoint(call.tenant_id, address.run_id, address.kind, address.name)
    except NotFound:
        return False
    return True


async def read_manifest(call: Call, checkpoint: CheckpointRow) -> AdapterManifest:
    """Raises NotFound when the files are gone, InvalidRequest when they are not an adapter of ours."""
    return await asyncio.to_thread(_read_manifest, call, checkpoint)


def _read_manifest(call: Call, checkpoint: CheckpointRow) -> AdapterManifest:
    path = CheckpointPath(checkpoint.run_id, checkpoint.kind, checkpoint.name)
    content = Path(call.gateway.blobs.open_path(checkpoint.key, MANIFEST_FILE)).read_bytes()
    try:
        return AdapterManifest.model_validate_json(content)
    except ValidationError:
        raise InvalidRequest(f"{path}: its {MANIFEST_FILE} is not one that this server can read", "malformed") from None
