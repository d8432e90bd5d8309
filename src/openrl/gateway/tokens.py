"""Short-lived tokens (JWT, HS256) that stand for a credential; one whose key or user is no more opens nothing."""

import hashlib
import hmac
import math
import uuid
from dataclasses import dataclass

import jwt

from openrl.errors import InvalidToken
from openrl.gateway.identity import urn_of
from openrl.store.identities import Identity, Role

TOKEN_PREFIX = "eyJ"  # noqa: S105 how every JWT begins: '{"' in base64
ISSUER = "openrl"
_ALGORITHM = "HS256"


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """What a token stands for: a key, or a user that an identity provider has signed in."""

    key_hash: str = ""
    tenant_id: str = ""
    user_id: str = ""
    role: Role = "reader"  # of a user: at most


def make_token(identity: Identity, key_hash: str, key: bytes, now: float, lifetime_s: float, email: str = "") -> str:
    """A token for the key with this hash; without one, for the user."""
    claims = {
        "iss": ISSUER,
        "sub": urn_of(identity),
        "org_id": identity.tenant_id,
        "email": email,
        "iat": int(now),
        "exp": math.ceil(now + lifetime_s),
        "jti": uuid.uuid4().hex,
        "key_hash": key_hash,
    }
    if not key_hash:
        claims |= {"user_id": identity.user_id, "role": identity.role}
    return jwt.encode(claims, _signing_key(key), _ALGORITHM)


def open_token(token: str, key: bytes, now: float) -> TokenHolder:
    """What the token stands for; raises InvalidToken."""
    try:
        # The expiry is checked against our own clock below.
        claims = jwt.decode(
            token,
            _signing_key(key),
            [_ALGORITHM],
            issuer=ISSUER,
            options={"require": ["exp", "iat", "key_hash"], "verify_exp": False, "verify_iat": False},
        )
    except (jwt.InvalidTokenError, UnicodeError):
        raise InvalidToken("the token is not valid") from None
    if now >= claims["exp"]:
        raise InvalidToken("the token has expired")
    if claims["key_hash"]:
        return TokenHolder(claims["key_hash"])
    return TokenHolder("", claims["org_id"], claims["user_id"], claims["role"])


def _signing_key(key: bytes) -> bytes:
    """A key of its own: nothing that is signed for another purpose passes for a token."""
    return hmac.new(key, b"token", hashlib.sha256).digest()
