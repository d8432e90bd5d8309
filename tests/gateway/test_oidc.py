"""Tokens of an identity provider: what opens the door, and whatever must not."""

import base64
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import tinker
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import HMACAlgorithm
from pydantic import ValidationError

from openrl.config import AuthConfig, GatewayConfig
from openrl.gateway.jwks import KeySet, read_keys
from openrl.store.identities import OPERATOR, UserRow
from tests.gateway.gateway_server import KEYS, GatewayServer
from tests.gateway.identity_provider import AUDIENCE, IdentityProvider, new_signer, public_jwk
from tests.gateway.raw_client import create_owned

NOW = 1_000_000.0


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


def serve(tmp_path: Path, provider: IdentityProvider, *, jwt_auth: bool = False, **auth: Any) -> GatewayServer:
    config = AuthConfig(oidc_issuer=provider.issuer, oidc_audience=AUDIENCE, **auth)
    server = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5, jwt_auth=jwt_auth), auth=config)
    server.start()
    for user in (
        UserRow("u-ada", "alice", "member", 0.0, "ada@alice.example", "ada"),
        UserRow("u-roy", "alice", "reader", 0.0, "roy@alice.example"),
        UserRow("u-bob", "bob", "admin", 0.0, "bob@bob.example", "bob"),
    ):
        server.call(server.store.identities.add_user(user, OPERATOR))
    return server


@pytest.fixture
def oidc_server(tmp_path: Path, provider: IdentityProvider) -> Iterator[GatewayServer]:
    running = serve(tmp_path, provider)
    yield running
    running.stop()


def get(server: GatewayServer, token: str, path: str = "sessions", header: str = "X-API-Key") -> httpx.Response:
    return httpx.get(f"{server.url}/api/v1/{path}", headers={header: token}, timeout=30)


def client(server: GatewayServer, credential: str) -> httpx.Client:
    return httpx.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": credential}, timeout=30)


def test_a_token_opens_the_door_of_its_users_tenant_in_either_header(
    oidc_server: GatewayServer, provider: IdentityProvider
):
    ada, bob = provider.token(), provider.token(sub="bob", org_id="bob")
    with client(oidc_server, KEYS["alice"]) as http:
        owned = create_owned(http)
    path = f"training_runs/{owned.run_id}"
    assert get(oidc_server, ada, path).status_code == 200
    assert get(oidc_server, f"Bearer {ada}", path, "Authorization").status_code == 200
    assert get(oidc_server, f"Bearer {KEYS['alice']}", path, "Authorization").status_code == 200
    assert get(oidc_server, bob, path).status_code == 404
    assert get(oidc_server, ada, "admin/users").status_code == 403
    assert get(oidc_server, bob, "admin/users").status_code == 200
    assert provider.num_fetches == 1


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_keys_of_three_kinds_are_taken(tmp_path: Path, provider: IdentityProvider, algorithm: str):
    provider.rotate(algorithm, "k")
    server = serve(tmp_path, provider)
    assert get(server, provider.token()).status_code == 200
    server.stop()


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://elsewhere.example"},
        {"aud": "another-program"},
        {"aud": None},
        {"exp": time.time() - 61},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 1e300},
        {"iat": time.time() + 3600, "exp": time.time() + 7200},
        {"nbf": time.time() + 3600},
        {"iat": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 300},
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(
    oidc_server: GatewayServer, provider: IdentityProvider, claims: dict[str, Any]
):
    assert get(oidc_server, provider.token()).status_code == 200
    answer = get(oidc_server, provider.token(**claims))
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_clocks_may_be_a_minute_apart(oidc_server: GatewayServer, provider: IdentityProvider):
    now = time.time()
    assert get(oidc_server, provider.token(exp=now - 30)).status_code == 200
    assert get(oidc_server, provider.token(iat=now + 30, nbf=now + 30)).status_code == 200


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def forged_tokens(provider: IdentityProvider) -> list[str]:
    good, claims = provider.token(), provider.claims()
    public = provider.signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header, body, signature = good.split(".")
    other = jwt.encode(claims, new_signer("RS256"), "RS256", {"kid": provider.key_id})
    unsigned = (
        base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": provider.key_id}).encode()).decode().rstrip("=")
    )
    confused = jwt.encode({}, "k" * 32, "HS256", {"kid": provider.key_id}).split(".")[0]
    changed = part({**claims, "sub": "bob"})
    mac = HMACAlgorithm(HMACAlgorithm.SHA256)
    shared = base64.urlsafe_b64encode(mac.sign(f"{confused}.{body}".encode(), public)).decode().rstrip("=")
    return [
        other,
        f"{unsigned}.{body}.",
        f"{confused}.{body}.{shared}",  # the public key as if it were a shared secret
        jwt.encode(claims, new_signer("ES256"), "ES256", {"kid": provider.key_id}),
        jwt.encode(claims, provider.signer, "RS512", {"kid": provider.key_id}),
        f"{header}.{changed}.{signature}",
        f"{header}.{body}.",
        jwt.encode(claims, provider.signer, "RS256", {"kid": "unknown"}),
        "eyJ",
        "eyJ.a.b",
        "eyJ" + "a" * 30_000,
    ]


def test_a_forged_token_is_refused(oidc_server: GatewayServer, provider: IdentityProvider):
    assert get(oidc_server, provider.token()).status_code == 200
    for forged in forged_tokens(provider):
        assert get(oidc_server, forged).status_code == 401, forged[:200]


def test_a_token_of_ours_is_none_of_the_providers(tmp_path: Path, provider: IdentityProvider):
    server = serve(tmp_path, provider, jwt_auth=True)
    claims = provider.claims(iss="openrl", key_hash="x")
    for key in (provider.signer, new_signer("RS256")):
        assert get(server, jwt.encode(claims, key, "RS256", {"kid": provider.key_id})).status_code == 401
    assert get(server, jwt.encode(claims, "k" * 32, "HS256")).status_code == 401
    server.stop()


def test_keys_are_rotated_and_fetched_again_at_most_once_a_minute(
    oidc_server: GatewayServer, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
):
    old = provider.token()
    assert get(oidc_server, old).status_code == 200
    provider.rotate("ES256", "key-2")
    for _ in range(3):
        assert get(oidc_server, provider.token()).status_code == 401
    assert provider.num_fetches == 1
    monkeypatch.setattr("openrl.gateway.jwks.REFETCH_S", 0.0)
    assert get(oidc_server, provider.token()).status_code == 200
    assert provider.num_fetches == 2
    assert get(oidc_server, old).status_code == 401


def test_without_the_providers_keys_clients_are_told_to_come_again(tmp_path: Path, provider: IdentityProvider):
    provider.is_broken = True
    server = serve(tmp_path, provider)
    assert get(server, provider.token()).status_code == 503
    assert get(server, KEYS["alice"]).status_code == 200
    server.stop()


def test_who_was_never_added_is_refused_unless_users_are_made_at_first_sight(
    tmp_path: Path, provider: IdentityProvider
):
    strangers = [provider.token(sub="eve", email="eve@x.y"), provider.token(sub="eve", org_id="carol", email="eve@x.y")]
    server = serve(tmp_path / "a", provider)
    for token in strangers:
        answer = get(server, token)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert "admin users add" in answer.json()["detail"]
    assert get(server, provider.token(sub="new", email="roy@alice.example", email_verified=None)).status_code == 401
    assert get(server, provider.token(sub="new", email="Roy@Alice.Example")).status_code == 200
    server.stop()
    server = serve(tmp_path / "b", provider, oidc_auto_create=True)
    for token in strangers:
        assert get(server, token).status_code == 200
    made = server.call(server.store.identities.list_tenants())
    assert {tenant.name for tenant in made} == {"alice", "bob", "carol"}
    server.stop()


def test_claims_have_the_names_and_values_that_are_configured(tmp_path: Path, provider: IdentityProvider):
    server = serve(
        tmp_path,
        provider,
        oidc_tenant_claim="org.name",
        oidc_tenant="bob",
        oidc_role_claim="https://x.y/groups",
        oidc_roles={"ops": "admin", "all": "reader"},
    )
    bob = {"sub": "bob", "org_id": None}

    def is_admin(**claims: Any) -> int:
        return get(server, provider.token(**bob, **claims), "admin/users").status_code

    assert is_admin(org={"name": "bob"}) == 200
    assert is_admin() == 200
    assert is_admin(**{"https://x.y/groups": ["all", "ops", "else", 7]}) == 200
    assert is_admin(**{"https://x.y/groups": "all"}) == 403
    assert is_admin(org={"name": "alice"}) == 401
    assert is_admin(org={"name": ["bob"]}, role="reader") == 200  # no text: the tenant of tokens without one
    assert (
        get(server, provider.token(org={"name": "alice"}, **{"https://x.y/groups": "ops"}), "audit").status_code == 403
    )
    server.stop()


def test_a_token_without_a_tenant_is_refused(oidc_server: GatewayServer, provider: IdentityProvider):
    answer = get(oidc_server, provider.token(org_id=None))
    assert (answer.status_code, "org_id" in answer.json()["detail"]) == (401, True)


@pytest.fixture
def token_server(tmp_path: Path, provider: IdentityProvider) -> Iterator[GatewayServer]:
    """With tokens of its own, for which others are exchanged. The SDK leaves its sockets to the collector."""
    running = serve(tmp_path, provider, jwt_auth=True)
    yield running
    gc.collect()
    running.stop()


@pytest.mark.sdk("RestClient.whoami", "RestClient.list_sessions")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sdk_takes_a_token_for_its_key_and_knows_who_it_is(token_server: GatewayServer, provider: IdentityProvider):
    rest = tinker.RestClient(base_url=token_server.url, api_key=provider.token())
    me = rest.whoami().result()
    assert (me.user_urn, me.org_urn, me.email) == ("tml:user:u-ada", "tml:organization:alice", "ada@alice.example")
    assert rest.list_sessions().result().sessions == []
    by_key = tinker.RestClient(base_url=token_server.url, api_key=KEYS["alice"]).whoami().result()
    assert (by_key.user_urn, by_key.org_urn) == ("tml:user:alice", "tml:organization:alice")


def test_an_exchanged_token_is_as_good_as_its_user_and_ends_with_what_it_was_exchanged_for(
    tmp_path: Path, provider: IdentityProvider
):
    server = serve(tmp_path, provider, jwt_auth=True)
    with client(server, provider.token(exp=int(time.time()) + 100, role="reader")) as http:
        token = http.post("auth/token", json={}).json()["jwt"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - time.time() < 102
    assert get(server, token).status_code == 200
    with client(server, token) as http:
        assert http.post("create_session", json={}).status_code == 403  # a reader's, though the user is a member
        assert http.post("auth/token", json={}).status_code == 401
        assert http.get("auth/apikey/me").status_code == 404
    server.call(server.store.identities.update_user("alice", "u-ada", NOW, OPERATOR, is_disabled=True))
    for credential in (token, provider.token()):
        assert get(server, credential).status_code == 401
    server.stop()


def test_only_sound_keys_are_read():
    weak = {"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"}
    good = public_jwk(new_signer("RS256"), "b", "RS256")
    others = [{**good, "kid": "c", "use": "enc"}, {**good, "kid": "d", "alg": "RS512"}, {"kty": "RSA", "kid": "e"}, 7]
    assert list(read_keys({"keys": [weak, good, *others]})) == ["b"]
    for document in ([], {}, {"keys": {}}, None):
        with pytest.raises(ValueError, match="no list of keys"):
            read_keys(document)


async def test_keys_are_not_fetched_from_where_a_redirection_or_another_issuer_leads(provider: IdentityProvider):
    provider.redirects["/moved"] = provider.jwks_url
    for url in (
        f"{provider.issuer}/moved",
        f"{provider.issuer}/missing",
        "http://example.org/keys",
        "file:///etc/hosts",
    ):
        with pytest.raises(Exception, match="cannot be had"):
            await KeySet(provider.issuer, url).find("key-1")
    provider.documents["/.well-known/openid-configuration"]["issuer"] = "https://elsewhere.example"
    with pytest.raises(Exception, match="cannot be had"):
        await KeySet(provider.issuer, "").find("key-1")
    assert provider.num_fetches == 0


async def test_keys_are_forgotten_when_they_are_old_and_an_answer_that_is_too_large_is_not_read(
    provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    keys = KeySet(provider.issuer, provider.jwks_url, lambda: now[0])
    assert await keys.find("key-1") is not None
    assert await keys.find(None) is not None
    provider.rotate("RS256", "key-2")
    now[0] = 3600.0
    assert await keys.find("key-1") is None
    monkeypatch.setattr("openrl.gateway.jwks._MAX_BYTES", 10)
    now[0] = 7200.0
    assert await keys.find("key-2") is not None  # kept until the next good answer
    assert provider.num_fetches == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"oidc_issuer": "http://idp.example", "oidc_audience": "a"},
        {"oidc_issuer": "https://idp.example"},
        {"oidc_issuer": "https://idp.example", "oidc_audience": "a", "oidc_jwks_url": "ftp://idp.example/keys"},
        {"oidc_roles": {"ops": "root"}},
    ],
)
def test_an_unsafe_configuration_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        AuthConfig(**wrong)
