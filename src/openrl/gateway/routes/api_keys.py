"""The caller's own credential: what it is, its end, and its exchange for a token."""

from starlette.responses import Response

from openrl.errors import NotFound, Unauthorized
from openrl.gateway.auth import KEY_PREFIX, credential_of, key_hash_of
from openrl.gateway.context import Call, Route
from openrl.gateway.identity import tenant_name
from openrl.gateway.replies import json_reply, no_content
from openrl.gateway.tokens import make_token
from openrl.store.base import ApiKeyRow

_ID_DIGITS = 13  # hexadecimal: 52 bits, which every JSON reader keeps exactly


async def get_own_key(call: Call) -> Response:
    """The key that was sent, as `tinker auth login` wants it. A tenant has no address: its name stands there."""
    key = await _own_key(call)
    name = await tenant_name(call.gateway, call.tenant_id)
    return json_reply(
        {
            "key_id": int(key.key_hash[:_ID_DIGITS], 16),
            "name": key.label or "API key",
            "note": "",
            "details": {"org_details": {"name": name}, "user_details": {"email": name}},
        }
    )


async def delete_own_key(call: Call) -> Response:
    """Revoke the key that was sent, with every token that was exchanged for it."""
    key = await _own_key(call)
    await call.gateway.store.revoke_api_key(key.key_hash, call.gateway.clock())
    return no_content()


async def exchange(call: Call) -> Response:
    """A token for the key that was sent; tokens are not exchanged, so that each goes back to a key."""
    gateway, credential = call.gateway, credential_of(call.request)
    if not gateway.config.jwt_auth:
        message = "this server gives out no tokens (gateway.jwt_auth is off); send the API key itself"
        raise NotFound(message, "not_supported", bound="the API key in X-API-Key")
    if not credential.startswith(KEY_PREFIX):
        raise Unauthorized(
            "a token is not exchanged for another; send the API key", bound=f"a key that starts with {KEY_PREFIX}"
        )
    key_hash = key_hash_of(credential, gateway)
    now = gateway.clock()
    token = make_token(call.tenant_id, key_hash, gateway.signing_key, now, gateway.config.jwt_lifetime_s)
    return json_reply({"jwt": token})


async def _own_key(call: Call) -> ApiKeyRow:
    key_hash = key_hash_of(credential_of(call.request), call.gateway)
    keys = await call.gateway.store.list_api_keys(call.tenant_id)
    return next(key for key in keys if key.key_hash == key_hash)


ROUTES = (
    Route("GET", "/auth/apikey/me", get_own_key),
    Route("DELETE", "/auth/apikey/me", delete_own_key),
    Route("POST", "/auth/token", exchange),
)
