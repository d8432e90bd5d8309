"""Keeps the losses that clients create: definitions as objects, named by their content.

Equal definitions of a tenant are one object, so that a loop which is started a thousand times stores its loss once.
"""

import asyncio

from openrl.errors import NotFound
from openrl.gateway.context import Call
from openrl.protocol.custom_loss import (
    LOSS_FILE,
    CustomLoss,
    LossDefinition,
    custom_loss_id,
    custom_loss_key,
    parse_custom_loss,
)
from openrl.store.base import Blobs


async def keep_loss(call: Call, session_id: str, definition: LossDefinition) -> str:
    """The id of the loss that a session creates; its definition is durable."""
    stored = definition.model_dump_json(include=set(LossDefinition.model_fields)).encode()
    loss_id = custom_loss_id(stored)
    key = custom_loss_key(call.tenant_id, loss_id)
    await call.gateway.store.ledger.note_loss_use(key, call.tenant_id, session_id, call.gateway.clock())
    await asyncio.to_thread(_put_once, call.gateway.blobs, key, stored)
    return loss_id


async def find_loss(call: Call, session_id: str, loss_id: str) -> CustomLoss:
    """The tenant's loss, which the session is noted to use; raises NotFound."""

    async def load(tenant_id: str, _: str) -> CustomLoss:
        loss = await _read_loss(call, tenant_id, loss_id)
        key = custom_loss_key(tenant_id, loss_id)
        await call.gateway.store.ledger.note_loss_use(key, tenant_id, session_id, call.gateway.clock())
        return loss

    return await call.gateway.losses.get(call.tenant_id, f"{session_id}/{loss_id}", load)


async def _read_loss(call: Call, tenant_id: str, loss_id: str) -> CustomLoss:
    key = custom_loss_key(tenant_id, loss_id)
    try:
        files = await asyncio.to_thread(call.gateway.blobs.get_object, key)
    except NotFound:
        raise NotFound.of("custom loss", loss_id) from None
    return parse_custom_loss(files[LOSS_FILE])


def _put_once(blobs: Blobs, key: str, stored: bytes) -> None:
    try:
        blobs.list_object(key)
    except NotFound:
        blobs.put_object(key, {LOSS_FILE: stored})
