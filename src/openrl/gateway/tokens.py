"""Short-lived tokens (JWT, HS256) that stand for an API key; one whose key is revoked opens nothing."""

import hashlib
import hmac
import math
import uuid

import jwt

from openrl.errors import InvalidToken
from openrl.gateway.identity import user_urn

TOKEN_PREFIX = "eyJ"  # noqa: S105 how every JWT begins: '{"' in base64
_ALGORITHM = "HS256"
_ISSUER = "openrl"


def make_token(tenant_id: str, key_hash: str, key: bytes, now: float, lifetime_s: float) -> str:
    """A token for the tenant whose API key has this hash."""
    claims = {
        "iss": _ISSUER,
        "sub": user_urn(tenant_id),
        "org_id": tenant_id,
        "email": "",
        "iat": int(now),
        "exp": math.ceil(now + lifetime_s),
        "jti": uuid.uuid4().hex,
        "key_hash": key_hash,
    }
    return jwt.encode(claims, _signing_key(key), _ALGORITHM)


def open_token(token: str, key: bytes, now: float) -> str:
    """The hash of the API key that the token stands for; raises InvalidToken."""
    try:
        # The expiry is checked against our own clock below.
        claims = jwt.decode(
            token,
            _signing_key(key),
            [_ALGORITHM],
            issuer=_ISSUER,
            options={"require": ["exp", "iat", "key_hash"], "verify_exp": False, "verify_iat": False},
        )
    except (jwt.InvalidTokenError, UnicodeError):
        raise InvalidToken("the token is not valid") from None
    if now >= claims["exp"]:
        raise InvalidToken("the token has expired")
    return str(claims["key_hash"])


def _signing_key(key: bytes) -> bytes:
    """A key of its own: nothing that is signed for another purpose passes for a token."""
    return hmac.new(key, b"token", hashlib.sha256).digest()
