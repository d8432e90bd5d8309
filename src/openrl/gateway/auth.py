"""Turns the X-API-Key header into a tenant."""

import hashlib

from starlette.requests import Request

from openrl.errors import Unauthorized
from openrl.gateway.headers import header
from openrl.store.base import Store

KEY_PREFIX = "tml-"


async def authenticate(request: Request, store: Store) -> str:
    """The tenant id; raises Unauthorized."""
    key = header(request, b"x-api-key")
    if key is None:
        raise Unauthorized("the X-API-Key header is missing")
    return await tenant_of(key, store)


async def tenant_of(key: str, store: Store) -> str:
    """The tenant of a key in clear; raises Unauthorized."""
    if not key.startswith(KEY_PREFIX):
        raise Unauthorized(f"the API key is not valid: it must start with {KEY_PREFIX!r}")
    return await store.tenant_of_key(hash_key(key))


def hash_key(key: str) -> str:
    """What the store keeps of a key: its SHA-256, in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
