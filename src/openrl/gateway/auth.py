"""Turns the credential of a request into an identity: an API key, a token exchanged for one, or an OIDC token."""

import hashlib
import secrets

from starlette.requests import Request

from openrl.errors import Forbidden, Unauthorized
from openrl.gateway.context import Access, Gateway
from openrl.gateway.headers import header
from openrl.gateway.oidc import issuer_of
from openrl.gateway.tokens import ISSUER, TOKEN_PREFIX, open_token
from openrl.store.identities import ROLES, Identity, Role, lesser_role

KEY_PREFIX = "tml-"
_NEEDED: dict[Access, Role] = {"read": "reader", "write": "member", "admin": "admin"}


async def authenticate(request: Request, gateway: Gateway) -> Identity:
    """Whom the request is from; raises Unauthorized."""
    return await identity_of(credential_of(request), gateway)


def check_access(identity: Identity, access: Access) -> None:
    """Raises Forbidden unless the role allows it."""
    needed = _NEEDED[access]
    if ROLES.index(identity.role) < ROLES.index(needed):
        message = f"the role of this credential is {identity.role}; this needs {needed}"
        raise Forbidden(message, value=identity.role, bound=needed)


def credential_of(request: Request) -> str:
    """What X-API-Key holds, or Authorization as a bearer token; raises Unauthorized when both are missing."""
    credential = header(request, b"x-api-key")
    if credential is not None:
        return credential
    scheme, _, token = (header(request, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    raise Unauthorized(
        "the X-API-Key header is missing; the SDK sends TINKER_API_KEY in it",
        bound=f"a key that starts with {KEY_PREFIX}",
    )


async def identity_of(credential: str, gateway: Gateway) -> Identity:
    """Whom a key in clear, or a token, stands for; raises Unauthorized, of tokens InvalidToken."""
    identities, now = gateway.store.identities, gateway.clock()
    if not is_token(credential, gateway):
        return await identities.identity_of_key(key_hash_of(credential), now)
    if is_foreign(credential, gateway):
        return (await sign_in(credential, gateway))[0]
    holder = open_token(credential, gateway.signing_key, now)
    if holder.key_hash:
        return await identities.identity_of_key(holder.key_hash, now)
    identity = await identities.identity_of_user(holder.tenant_id, holder.user_id)
    role = lesser_role(identity.role, holder.role)
    return Identity(identity.tenant_id, identity.user_id, role, None, "")


async def sign_in(token: str, gateway: Gateway) -> tuple[Identity, float]:
    """The user that an identity provider's token stands for, and when the token ends; raises Unauthorized."""
    assert gateway.oidc is not None
    now = gateway.clock()
    claims, expires_at = await gateway.oidc.verify(token, now)
    may_create = gateway.oidc.config.oidc_auto_create
    return await gateway.store.identities.sign_in(claims, now, may_create=may_create), expires_at


def is_token(credential: str, gateway: Gateway) -> bool:
    """Whether it is a JWT, where any are taken."""
    return credential.startswith(TOKEN_PREFIX) and (gateway.config.jwt_auth or gateway.oidc is not None)


def is_foreign(token: str, gateway: Gateway) -> bool:
    """Whether the identity provider has to answer for a token; ours are signed by ourselves."""
    return gateway.oidc is not None and not (gateway.config.jwt_auth and issuer_of(token) == ISSUER)


def key_hash_of(credential: str) -> str:
    """The hash of a key in clear; raises Unauthorized for what is none."""
    if not credential.startswith(KEY_PREFIX):
        raise Unauthorized(
            f"the API key is not valid: it must start with {KEY_PREFIX!r}", bound=f"a key that starts with {KEY_PREFIX}"
        )
    return hash_key(credential)


def new_key() -> str:
    """An API key in clear that nobody has."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What the store keeps of a key: its SHA-256, in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
