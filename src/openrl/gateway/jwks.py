"""The public keys of an identity provider, fetched when they are needed and kept for a while."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import InvalidKeyError, PyJWKError

from openrl.config_access import is_safe_url
from openrl.errors import Unavailable

REFETCH_S = 60.0
"""A key id that is unknown makes the keys be fetched again, at most this often."""
MAX_AGE_S = 3600.0
"""Keys that the provider has withdrawn are forgotten after this long."""
_RETRY_S = 5.0  # while there are no keys at all
_TIMEOUT_S = 5.0
_MAX_BYTES = 2**20
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048
_log = structlog.get_logger(__name__)
_ALGORITHMS: Mapping[tuple[object, object], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key, and the one algorithm that it may be used with."""

    key: Any  # of the cryptography package
    algorithm: str


class KeySet:
    """The keys behind a JWKS address, by their ids. Lives on one event loop."""

    def __init__(self, issuer: str, jwks_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Without `jwks_url` the issuer's discovery document names it."""
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._clock = clock  # monotonic seconds
        self._keys: dict[str | None, SigningKey] = {}
        self._fetched_at = -MAX_AGE_S
        self._tried_at = -MAX_AGE_S
        self._lock = asyncio.Lock()

    async def find(self, key_id: str | None) -> SigningKey | None:
        """The key of this id; without an id the only key there is. Raises Unavailable while there are no keys."""
        if self._is_stale(key_id):
            async with self._lock:  # one fetch for all who wait
                if self._is_stale(key_id):
                    await self._fetch()
        if not self._keys:
            raise Unavailable("the keys of the identity provider cannot be had at the moment; ask again soon")
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _is_stale(self, key_id: str | None) -> bool:
        now = self._clock()
        is_wanting = not self._keys or now - self._fetched_at >= MAX_AGE_S
        is_wanting = is_wanting or (key_id is not None and key_id not in self._keys)
        return is_wanting and now - self._tried_at >= (REFETCH_S if self._keys else _RETRY_S)

    async def _fetch(self) -> None:
        self._tried_at = self._clock()
        try:
            keys = await asyncio.to_thread(_fetch_keys, self._issuer, self._jwks_url)
        except (OSError, HTTPException, ValueError) as error:
            _log.warning("the identity provider's keys were not fetched", issuer=self._issuer, error=str(error))
            return
        self._keys, self._fetched_at = keys, self._clock()


def read_keys(document: object) -> dict[str | None, SigningKey]:
    """Those keys of a JWKS document that tokens may be signed with; raises ValueError for another document."""
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the document has no list of keys")
    found: dict[str | None, SigningKey] = {}
    for entry in entries[:_MAX_KEYS]:
        key = _read_key(entry)
        if key is not None:
            found.setdefault(entry.get("kid"), key)
    return found


def _read_key(entry: Any) -> SigningKey | None:
    """None for what tokens are not signed with here: symmetric, weak, of another use, or malformed."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    algorithm = _ALGORITHMS.get((entry.get("kty"), entry.get("crv") if entry.get("kty") != "RSA" else None))
    if algorithm is None or entry.get("alg", algorithm) != algorithm or not isinstance(entry.get("kid"), str | None):
        return None
    try:
        key = PyJWK(entry, algorithm).key
    except (PyJWKError, InvalidKeyError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return None
    return SigningKey(key, algorithm)


def _fetch_keys(issuer: str, jwks_url: str) -> dict[str | None, SigningKey]:
    if not jwks_url:
        about = fetch_json(issuer.rstrip("/") + "/.well-known/openid-configuration")
        if not isinstance(about, dict) or about.get("issuer") != issuer or not isinstance(about.get("jwks_uri"), str):
            raise ValueError("its discovery document is for another issuer, or names no jwks_uri")
        jwks_url = about["jwks_uri"]
    return read_keys(fetch_json(jwks_url))


def fetch_json(url: str) -> Any:
    """What lies at a safe address; raises OSError, HTTPException or ValueError. Blocks for about 10 s at most."""
    if not is_safe_url(url):
        raise ValueError(f"{url!r} is not an https address")
    opener = urllib.request.build_opener(_NoRedirect)
    deadline = time.monotonic() + _TIMEOUT_S
    body = b""
    with opener.open(url, timeout=_TIMEOUT_S) as answer:
        while piece := answer.read1(65536):
            body += piece
            if len(body) > _MAX_BYTES or time.monotonic() > deadline:
                raise ValueError(f"{url} answers with more than {_MAX_BYTES} bytes, or too slowly")
    return json.loads(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection could lead to an address that is not safe: it is a failure."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        raise urllib.error.HTTPError(req.full_url, code, f"{msg}: it leads to {newurl}", headers, fp)
