"""Turns the X-API-Key header into a tenant: it holds an API key, or a token that was exchanged for one."""

import hashlib

from starlette.requests import Request

from openrl.errors import Unauthorized
from openrl.gateway.context import Gateway
from openrl.gateway.headers import header
from openrl.gateway.tokens import TOKEN_PREFIX, open_token

KEY_PREFIX = "tml-"


async def authenticate(request: Request, gateway: Gateway) -> str:
    """The tenant id; raises Unauthorized."""
    return await tenant_of(credential_of(request), gateway)


def credential_of(request: Request) -> str:
    """What the header holds; raises Unauthorized when it is missing."""
    credential = header(request, b"x-api-key")
    if credential is None:
        raise Unauthorized(
            "the X-API-Key header is missing; the SDK sends TINKER_API_KEY in it",
            bound=f"a key that starts with {KEY_PREFIX}",
        )
    return credential


async def tenant_of(credential: str, gateway: Gateway) -> str:
    """The tenant of a key in clear, or of a token while its key is not revoked; raises Unauthorized."""
    return await gateway.store.tenant_of_key(key_hash_of(credential, gateway))


def key_hash_of(credential: str, gateway: Gateway) -> str:
    """The hash of the key that was sent or exchanged; raises Unauthorized, of tokens InvalidToken."""
    if gateway.config.jwt_auth and credential.startswith(TOKEN_PREFIX):
        return open_token(credential, gateway.signing_key, gateway.clock())
    if not credential.startswith(KEY_PREFIX):
        raise Unauthorized(
            f"the API key is not valid: it must start with {KEY_PREFIX!r}", bound=f"a key that starts with {KEY_PREFIX}"
        )
    return hash_key(credential)


def hash_key(key: str) -> str:
    """What the store keeps of a key: its SHA-256, in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
