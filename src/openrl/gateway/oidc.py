"""Checks tokens of an identity provider (OpenID Connect) and reads their claims."""

import math
from collections.abc import Mapping
from typing import Any

import jwt

from openrl.config import AuthConfig
from openrl.errors import InvalidToken, Unauthorized
from openrl.gateway.jwks import KeySet
from openrl.store.identities import ROLES, Role, SignIn

LEEWAY_S = 60.0
"""How far the clocks of the provider and this server may be apart."""
MAX_TOKEN_CHARACTERS = 16_384
MAX_CLAIM_CHARACTERS = 256
_REQUIRED = ("iss", "sub", "aud", "exp", "iat")


class OidcVerifier:
    """Turns tokens into sign-ins; who may sign in is the store's to say."""

    def __init__(self, config: AuthConfig, keys: KeySet | None = None) -> None:
        self.config = config
        self._keys = keys or KeySet(config.oidc_issuer, config.oidc_jwks_url)

    async def verify(self, token: str, now: float) -> tuple[SignIn, float]:
        """What the token says, and when it ends.

        Raises InvalidToken, Unauthorized for one without a tenant, Unavailable while the provider's keys are not there.
        """
        claims = await self._verified_claims(token, now)
        config = self.config
        tenant = _text(_claim(claims, config.oidc_tenant_claim)) or config.oidc_tenant
        if not tenant:
            raise Unauthorized(f"the token names no tenant in its claim {config.oidc_tenant_claim!r}")
        sign_in = SignIn(
            tenant_name=tenant,
            subject=_text(claims["sub"]),
            role=self._role(_claim(claims, config.oidc_role_claim)),
            email=_text(_claim(claims, config.oidc_email_claim)).lower(),
            is_email_verified=claims.get("email_verified") is True,
            display_name=_text(claims.get("name")),
        )
        return sign_in, float(claims["exp"])

    async def _verified_claims(self, token: str, now: float) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise InvalidToken("the token is too long")
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except (jwt.InvalidTokenError, UnicodeError, ValueError):
            raise InvalidToken("the token cannot be read") from None
        key = await self._keys.find(key_id)
        if key is None:
            raise InvalidToken("the token is signed with a key that its issuer does not have")
        try:
            claims = jwt.decode(
                token,
                key.key,
                [key.algorithm],  # what the key is for: never what the token asks for
                issuer=self.config.oidc_issuer,
                audience=self.config.oidc_audience,
                # The times are checked against our own clock below.
                options={
                    "require": list(_REQUIRED),
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.InvalidTokenError, UnicodeError, ValueError) as error:
            raise InvalidToken(f"the token is not valid: {error}") from None
        _check_times(claims, now)
        if not _text(claims["sub"]):
            raise InvalidToken("the token's subject is empty, or too long")
        return claims

    def _role(self, value: object) -> Role | None:
        """The one of the roles in the claim that may do most; None if it holds none that is known."""
        names = value if isinstance(value, list) else [value]
        known: dict[str, Role] = {**{role: role for role in ROLES}, **self.config.oidc_roles}
        granted = {known[name] for name in names if isinstance(name, str) and name in known}
        return next((role for role in reversed(ROLES) if role in granted), None)


def issuer_of(token: str) -> str:
    """Whom a token says it is from, unchecked; "" if it cannot be read."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.InvalidTokenError, UnicodeError, ValueError):
        return ""
    return _text(claims.get("iss"))


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    times = {name: claims[name] for name in ("exp", "iat", "nbf") if name in claims}
    for name, value in times.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or abs(value) > 2**53:
            raise InvalidToken(f"the token's {name} is no time")
    if now >= times["exp"] + LEEWAY_S:
        raise InvalidToken("the token has expired")
    if any(times[name] > now + LEEWAY_S for name in ("iat", "nbf") if name in times):
        raise InvalidToken("the token is not valid yet")


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """The claim of this name; else the one that its parts between dots lead to."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(value: object) -> str:
    """What a claim says, if it is a text that rows can hold."""
    is_fit = isinstance(value, str) and len(value) <= MAX_CLAIM_CHARACTERS and value.isprintable()
    return value if isinstance(value, str) and is_fit else ""
