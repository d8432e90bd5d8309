"""A small OpenID Connect provider on a loopback port: discovery, keys, and whatever token a test wants."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "openrl"


def new_signer(algorithm: str) -> Any:
    """A private key."""
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_jwk(private: Any, key_id: str, algorithm: str) -> dict[str, Any]:
    """The entry of a private key's public half in a JWKS document."""
    kind = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[algorithm]
    entry: dict[str, Any] = json.loads(kind.to_jwk(private.public_key()))
    return {**entry, "kid": key_id, "alg": algorithm, "use": "sig"}


class IdentityProvider:
    """Use as a context manager."""

    def __init__(self) -> None:
        self.num_fetches = 0
        self.is_broken = False
        self.documents: dict[str, Any] = {}
        self.redirects: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.jwks_url = f"{self.issuer}/keys"
        self.documents["/.well-known/openid-configuration"] = {"issuer": self.issuer, "jwks_uri": self.jwks_url}
        self.rotate("RS256", "key-1")

    def __enter__(self) -> "IdentityProvider":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def rotate(self, algorithm: str, key_id: str) -> None:
        """One new key in the place of all others."""
        self.signer, self.algorithm, self.key_id = new_signer(algorithm), algorithm, key_id
        self.documents["/keys"] = {"keys": [public_jwk(self.signer, key_id, algorithm)]}

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Those of a good token, changed; None leaves one out."""
        now = time.time()
        good = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ada",
            "org_id": "alice",
            "email": "ada@alice.example",
            "email_verified": True,
            "iat": now,
            "exp": now + 600,
        }
        return {name: value for name, value in {**good, **claims}.items() if value is not None}

    def token(self, **claims: Any) -> str:
        """Signed with the current key."""
        return jwt.encode(self.claims(**claims), self.signer, self.algorithm, {"kid": self.key_id})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.num_fetches += self.path == "/keys"
                if self.path in provider.redirects:
                    self.send_response(302)
                    self.send_header("Location", provider.redirects[self.path])
                    self.end_headers()
                    return
                found = provider.documents.get(self.path)
                content = b"" if found is None else json.dumps(found).encode()
                self.send_response(500 if provider.is_broken else 200 if found is not None else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_request(self, code: object = "-", size: object = "-") -> None:
                pass

        return Handler
