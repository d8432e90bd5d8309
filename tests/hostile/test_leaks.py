"""What answers and logs must not tell: how the server is made, and anybody's secrets."""

import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

import openrl
from openrl.gateway.app import API_PREFIX, all_routes
from openrl.gateway.routes.api_keys import delete_own_key
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from tests.gateway.gateway_server import KEYS
from tests.gateway.raw_client import Owned, create_owned, datum, result
from tests.gateway.valid_calls import free_calls, owned_calls
from tests.hostile.hostile_server import HostileServer, start
from tests.hostile.serve import SIGNING_KEY

INSIDES = re.compile(r"SELECT |INSERT |UPDATE |sqlite|psycopg|sqlalchemy|Traceback|\.py\b|File \"|/tmp/|site-packages")
JWT_LENGTH = 100


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[HostileServer]:
    """A server that is to be broken."""
    running = start(tmp_path, long_poll_s=0.2, jwt_auth=True)
    yield running
    running.stop()


def every_call(http: httpx.Client, owned: Owned) -> Iterator[httpx.Response]:
    for method, path, body in [*owned_calls(owned), *free_calls()]:
        yield http.request(method, path, json=body)
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 70, (datum([1, 2]),), "cross_entropy"))
    yield http.post("forward_backward", content=body)
    for _, route in all_routes():
        if route.method == "GET" and "{" not in route.path:
            yield http.get(f"{str(http.base_url).removesuffix(API_PREFIX + '/')}{API_PREFIX}{route.path}")


def test_a_broken_database_is_told_without_its_words(doomed: HostileServer):
    with doomed.client("alice") as http:
        owned = create_owned(http)
        with sqlite3.connect(doomed.log.parent / "openrl.db") as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                database.execute(f"ALTER TABLE {table} RENAME TO gone_{table}")
        database.close()
        answers = list(every_call(http, owned))
    assert {answer.status_code for answer in answers} <= {200, 400, 401, 404, 408, 503}
    assert sum(answer.status_code == 503 for answer in answers) > 20
    for answer in answers:
        assert not INSIDES.search(answer.text), answer.text
        assert str(doomed.log.parent) not in answer.text
    log = doomed.log.read_text()
    assert "no such table" in log
    assert owned.session_id not in "".join(line for line in log.splitlines() if "no such table" in line)


def test_a_broken_disk_is_told_without_its_files(doomed: HostileServer):
    with doomed.client("alice") as http:
        owned = create_owned(http)
        blobs = doomed.log.parent / "blobs"
        for name in ("packs", "objects", "tmp"):
            (blobs / name).rename(blobs / f"gone-{name}")
            (blobs / name).write_text("")
        answers = list(every_call(http, owned))
    for answer in answers:
        assert not INSIDES.search(answer.text), answer.text
        assert str(doomed.log.parent) not in answer.text


def test_every_response_has_the_headers_that_browsers_and_caches_need(server: HostileServer, alice: httpx.Client):
    owned = create_owned(alice)
    other = [alice.get(f"{server.url}{path}") for path in ("/", "/metrics", "/docs/errors", "/openapi.json", "/x/y/")]
    other += [alice.request("PATCH", "sessions"), alice.post("asample", content=b"{"), alice.head("healthz")]
    for answer in [*every_call(alice, owned), *other]:
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff", answer.url
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers.get_list("cache-control") == ["no-store"], answer.url
        assert "server" not in headers
        assert "x-powered-by" not in headers
    page = alice.get(f"{server.url}/docs/errors").headers.get_list("content-security-policy")
    assert any("default-src 'none'" in policy for policy in page)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = connection.recv(2**16).lower()
        assert b"x-content-type-options: nosniff" in answer
        assert b"server:" not in answer


def test_no_secret_is_ever_in_the_log(doomed: HostileServer):
    """Real traffic, good and bad, at level debug; then an error that quotes what it met."""
    secrets = [*KEYS.values(), SIGNING_KEY.decode(), "tml-a-key-that-is-wrong"]
    with doomed.client("alice") as http:
        owned = create_owned(http)
        token = http.post("auth/token", json={}).json()["jwt"]
        result(http, "save_weights_external", {"model_id": owned.run_id, "seq_id": 3, "path": "e"})
        address = f"training_runs/{owned.run_id}/checkpoints"
        links = [http.get(f"{address}/weights/w/archive").headers["Location"]]
        links += http.get(f"{address}/external_weights/e/external_weights_urls").json()["urls"].values()
        links.append(http.get(f"sessions/{owned.session_id}/trace_export").json()["url"])
        secrets += [token, *(unquote(link).rpartition("/")[2] for link in links)]
        for link in links:
            assert httpx.get(link).status_code == 200
            assert httpx.get(f"{link}x").status_code == 404
        for key in (token, "tml-a-key-that-is-wrong", KEYS["bob"]):
            for path in ("sessions", "auth/apikey/me", "nothing"):
                http.get(path, headers={"X-API-Key": key})
            lent = {"session_id": owned.session_id, "model_seq_id": 4, "path": owned.weights_path}
            http.post("load_weights", json={**lent, "weights_access_token": key})
            http.post("weights_info", json={"tinker_path": "x", "weights_access_token": [key]})
            http.get(f"sessions/{key}?key={key}")
        list(every_call(http, owned))
        with sqlite3.connect(doomed.log.parent / "openrl.db") as database:
            database.execute("ALTER TABLE sessions RENAME TO gone")
        database.close()
        http.get(f"sessions/{token}")
    lines = doomed.log.read_text()
    assert lines.count('"answered"') > 50
    assert [secret for secret in secrets if secret in lines] == []
    signatures = [secret.rpartition(".")[2] for secret in secrets if len(secret) > JWT_LENGTH]
    assert [signature for signature in signatures if signature in lines] == []


def test_stack_traces_of_faults_stay_in_the_log(server: HostileServer, alice: httpx.Client):
    """Every refusal of every endpoint to a stranger's odd values, looked at for the server's insides."""
    for _, route in all_routes():
        if route.handler is delete_own_key:
            continue
        names = re.findall(r"{(\w+)", route.path)
        for odd in ("x", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "a" * 2000):
            path = re.sub(r"{\w+(:\w+)?}", odd, route.path) if names else route.path
            answer = alice.request(route.method, path.lstrip("/"), content=json.dumps({"path": odd}).encode())
            assert answer.status_code < 500
            assert not INSIDES.search(answer.text.replace("/tmp/x", "")), answer.text
            assert str(Path(openrl.__file__).parent) not in answer.text
