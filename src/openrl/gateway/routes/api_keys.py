"""The caller's own credential: what it is, its end, and its exchange for a token."""

from starlette.responses import Response

from openrl.errors import NotFound, Unauthorized
from openrl.gateway.auth import KEY_PREFIX, credential_of, is_foreign, is_token, key_hash_of, sign_in
from openrl.gateway.context import Call, Gateway, Route
from openrl.gateway.identity import actor_of
from openrl.gateway.replies import json_reply, no_content
from openrl.gateway.tokens import make_token
from openrl.store.identities import ApiKeyRow, Identity

_ID_DIGITS = 13  # hexadecimal: 52 bits, which every JSON reader keeps exactly


async def get_own_key(call: Call) -> Response:
    """The key that was sent, as `tinker auth login` wants it; without a user the tenant's name is the address."""
    key = await _own_key(call)
    tenant = await call.gateway.store.identities.get_tenant(call.tenant_id)
    return json_reply(
        {
            "key_id": int(key.key_hash[:_ID_DIGITS], 16),
            "name": key.label or "API key",
            "note": "",
            "details": {
                "org_details": {"name": tenant.name},
                "user_details": {"email": await _email(call.gateway, call.identity) or tenant.name},
            },
        }
    )


async def delete_own_key(call: Call) -> Response:
    """Revoke the key that was sent, with every token that was exchanged for it."""
    key = await _own_key(call)
    gateway = call.gateway
    await gateway.store.identities.revoke_api_key(call.tenant_id, key.key_id, gateway.clock(), actor_of(call.identity))
    return no_content()


async def exchange(call: Call) -> Response:
    """A token for the credential that was sent; our own are not exchanged, so that each goes back to another kind."""
    gateway, credential, identity = call.gateway, credential_of(call.request), call.identity
    if not gateway.config.jwt_auth:
        message = "this server gives out no tokens (gateway.jwt_auth is off); send the API key itself"
        raise NotFound(message, "not_supported", bound="the API key in X-API-Key")
    now, lifetime_s, key_hash = gateway.clock(), gateway.config.jwt_lifetime_s, ""
    if not is_token(credential, gateway):
        key_hash = key_hash_of(credential)
    elif is_foreign(credential, gateway):
        identity, expires_at = await sign_in(credential, gateway)
        lifetime_s = max(min(lifetime_s, expires_at - now), 1.0)
    else:
        raise Unauthorized(
            "a token is not exchanged for another; send the API key", bound=f"a key that starts with {KEY_PREFIX}"
        )
    email = await _email(gateway, identity)
    return json_reply({"jwt": make_token(identity, key_hash, gateway.signing_key, now, lifetime_s, email)})


async def _email(gateway: Gateway, identity: Identity) -> str:
    """The user's, if the credential is a user's."""
    if not identity.user_id:
        return ""
    return (await gateway.store.identities.get_user(identity.tenant_id, identity.user_id)).email


async def _own_key(call: Call) -> ApiKeyRow:
    keys = await call.gateway.store.identities.list_api_keys(call.tenant_id)
    own = next((key for key in keys if key.key_id == call.identity.key_id), None)
    if own is None:
        raise NotFound("this credential is no API key: an identity provider answers for it", "not_supported")
    return own


ROUTES = (
    Route("GET", "/auth/apikey/me", get_own_key, "read"),
    Route("DELETE", "/auth/apikey/me", delete_own_key, "read"),
    Route("POST", "/auth/token", exchange, "read"),
)
