"""API keys that ask about themselves, and tokens in their place."""

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
import tinker

from tests.contracts.loops import backward, batch, connect, new_run
from tests.live_server import LiveServer, openrl, start_server
from tests.sdk.tinker_cli import TinkerCli


def new_key(server: LiveServer, tenant: str, label: str = "") -> str:
    made = openrl("keys", "create", "--tenant", tenant, "--label", label, "--data-dir", str(server.data_dir))
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def call(server: LiveServer, key: str, method: str, path: str) -> httpx.Response:
    return httpx.request(method, f"{server.url}/api/v1/{path}", headers={"X-API-Key": key}, timeout=30)


@pytest.mark.sdk("tinker auth login", "tinker auth status", "tinker auth logout")
def test_the_command_line_logs_in_and_out(server: LiveServer, tmp_path: Path):
    key = new_key(server, "walker", "laptop")
    cli = TinkerCli(server.url, None, tmp_path)
    assert cli.run("auth", "status").returncode != 0
    refused = cli.run("auth", "login", text="tml-wrong\n")
    assert refused.returncode != 0
    assert "not valid" in refused.stdout + refused.stderr
    login = cli.run("auth", "login", text=f"{key}\n")
    assert login.returncode == 0, login.stderr
    assert "walker" in login.stdout
    assert "laptop" in login.stdout
    assert "Tinker accessible: yes" in cli.table("auth", "status")
    stored = json.loads((tmp_path / ".tinker" / "credentials.json").read_text())
    assert key in json.dumps(stored)
    assert cli.run("auth", "logout").returncode == 0
    assert cli.run("auth", "status").returncode != 0


def test_a_key_can_end_itself_and_no_other(server: LiveServer):
    mine, kept = new_key(server, "leaver"), new_key(server, "leaver")
    shown = call(server, mine, "GET", "auth/apikey/me").json()
    assert shown["details"] == {"org_details": {"name": "leaver"}, "user_details": {"email": "leaver"}}
    assert shown["key_id"] != call(server, kept, "GET", "auth/apikey/me").json()["key_id"]
    assert call(server, mine, "DELETE", "auth/apikey/me").status_code == 204
    gone = call(server, mine, "GET", "auth/apikey/me")
    assert gone.status_code == 401
    assert "www-authenticate" not in gone.headers  # no token would help
    assert call(server, kept, "GET", "auth/apikey/me").status_code == 200


def test_without_the_flag_there_are_no_tokens(server: LiveServer, tmp_path: Path):
    assert call(server, server.key, "POST", "auth/token").status_code == 404
    whoami = TinkerCli(server.url, server.key, tmp_path).run("auth", "whoami")
    assert whoami.returncode != 0


@pytest.fixture(scope="module")
def token_server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("tokens")
    (directory / "openrl.toml").write_text("[gateway]\njwt_auth = true\njwt_lifetime_s = 2\n")
    live = start_server(tiny_model_dir, directory, "--config", str(directory / "openrl.toml"))
    yield live
    live.stop()


def exchange(server: LiveServer, key: str) -> str:
    answer = call(server, key, "POST", "auth/token")
    assert answer.status_code == 200, answer.text
    return answer.json()["jwt"]


@pytest.mark.sdk("RestClient.whoami", "ServiceClient.create_rest_client", "tinker auth whoami")
def test_tokens_tell_who_one_is(token_server: LiveServer, tmp_path: Path):
    me = tinker.RestClient(base_url=token_server.url, api_key=token_server.key).whoami().result()
    other = tinker.RestClient(base_url=token_server.url, api_key=token_server.other_key).whoami().result()
    assert me.user_urn != other.user_urn
    assert me.org_urn.startswith("tml:organization:")
    shown = TinkerCli(token_server.url, token_server.key, tmp_path).json("auth", "whoami")
    assert shown["user_urn"] == me.user_urn
    claims = jwt.decode(exchange(token_server, token_server.key), options={"verify_signature": False})
    assert claims["sub"] == me.user_urn
    assert "tml:organization:" + claims["org_id"] == me.org_urn
    assert 2 <= claims["exp"] - claims["iat"] <= 3


@pytest.mark.sdk("TrainingClient.forward_backward")
def test_a_client_outlives_its_tokens(token_server: LiveServer):
    with connect(token_server.url, token_server.key) as service:
        run = new_run(service)
        deadline = time.monotonic() + 2.5  # longer than a token lives
        while time.monotonic() < deadline:
            backward(run, batch(1))
            time.sleep(0.5)


def test_a_token_that_is_expired_or_forged_is_named_so(token_server: LiveServer):
    token = exchange(token_server, token_server.key)
    assert call(token_server, token, "GET", "sessions").status_code == 200
    header, claims, signature = token.split(".")
    stranger = exchange(token_server, token_server.other_key).split(".")
    none = jwt.encode(jwt.decode(token, options={"verify_signature": False}), "", algorithm="none")
    weak = jwt.encode(jwt.decode(token, options={"verify_signature": False}), "x" * 32, algorithm="HS256")
    forged = [f"{header}.{stranger[1]}.{signature}", f"{header}.{claims}.", none, weak, "eyJ", "eyJ.a.b"]
    for bad in forged:
        answer = call(token_server, bad, "GET", "sessions")
        assert answer.status_code == 401, bad
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert call(token_server, token, "POST", "auth/token").status_code == 401
    time.sleep(max(jwt.decode(token, options={"verify_signature": False})["exp"] - time.time(), 0.0) + 0.05)
    late = call(token_server, token, "GET", "sessions")
    assert late.status_code == 401
    assert 'error="invalid_token"' in late.headers["www-authenticate"]


def test_the_end_of_a_key_is_the_end_of_its_tokens(token_server: LiveServer):
    key = new_key(token_server, "brief")
    token = exchange(token_server, key)
    assert call(token_server, token, "GET", "auth/apikey/me").json()["details"]["org_details"]["name"] == "brief"
    assert call(token_server, token, "DELETE", "auth/apikey/me").status_code == 204
    for credential in (token, key):
        assert call(token_server, credential, "GET", "sessions").status_code == 401
    assert call(token_server, key, "POST", "auth/token").status_code == 401


def test_the_secret_is_for_its_owner_only(token_server: LiveServer):
    secret = token_server.data_dir / "secret"
    assert stat.S_IMODE(os.stat(secret).st_mode) == 0o600
    assert len(secret.read_text().strip()) == 64
