"""Every endpoint refuses characteristic mistakes in one shape: a stable code, value, bound, a page that explains."""

import ast
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, urlsplit

import httpx
import pytest

import openrl
from openrl.config import GatewayConfig
from openrl.errors import ErrorCode
from openrl.gateway.app import API_PREFIX, all_routes
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from tests.gateway.gateway_server import KEYS, GatewayServer
from tests.gateway.raw_client import Owned, create_owned, datum, post
from tests.gateway.refusals import BOUNDED, Refusals
from tests.gateway.valid_calls import Call, free_calls, owned_calls, route_of

SOURCES = Path(openrl.__file__).parent
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, -1e300, "", "nobody", "\x00", "\ud800", "x" * 5000),
    *([], {}, [None], [[]], {"type": "nobody"}, {"a": {"a": "\x00"}}),
)
ODD_TEXTS = ("", "x", "-1", "1.5", "99999999999999999999", "\x00", "\udcff", "é" * 300, "../..", "null")
ODD_BODIES = (
    *(b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b"{}{}"),
    *(b"[" * 10_000, b'{"a":' * 10_000, b'{"seq_id": 1' + b"0" * 5000 + b"}", b'{"\\ud800": 1}'),
)


@pytest.fixture
def refusals(http: httpx.Client) -> Refusals:
    return Refusals(http)


def places(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands inside a body."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def spoiled(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Bodies that differ from `body` in one place: absent, or something odd."""
    for at in places(body):
        absent = copy.deepcopy(body)
        parent: Any = absent
        for key in at[:-1]:
            parent = parent[key]
        del parent[at[-1]]
        yield absent
        for value in ODD:
            odd = copy.deepcopy(body)
            parent = odd
            for key in at[:-1]:
                parent = parent[key]
            parent[at[-1]] = value
            yield odd


def calls_with_body(owned: Owned) -> list[Call]:
    return [call for call in [*owned_calls(owned), *free_calls()] if call[2] is not None]


def test_every_endpoint_is_tried(owned: Owned):
    tried = {(each.method, each.path) for each, _ in map(route_of, [*owned_calls(owned), *free_calls()])}
    takes_more = {
        (route.method, route.path)
        for prefix, route in all_routes()
        if prefix == API_PREFIX and (route.body is not None or ("{" in route.path and "{token}" not in route.path))
    }
    assert takes_more - tried == set()


def test_a_field_that_is_absent_or_odd(http: httpx.Client, owned: Owned, refusals: Refusals):
    for method, path, body in calls_with_body(owned):
        assert body is not None
        if path.endswith("/finish") or path == "unload_model":  # the rest would meet nothing but that end
            path, body = path.replace(owned.session_id, post(http, "create_session", {})["session_id"]), dict(body)
        for wrong in spoiled(body):
            content = json.dumps(wrong).encode()
            answer = http.request(method, path, content=content, headers={"content-type": "application/json"})
            refusals.check(answer, method, path, content[:200])
    assert {"missing", "malformed", "out_of_range", "unknown_name", "not_supported", "not_found"} <= refusals.codes


def test_a_body_that_is_no_json_object(http: httpx.Client, owned: Owned, refusals: Refusals):
    for method, path, _ in calls_with_body(owned):
        for content in ODD_BODIES:
            answer = http.request(method, path, content=content, headers={"content-type": "application/json"})
            refusals.check(answer, method, path, content[:100])
        for coding in ("br", "zstd"):
            refusals.check(http.request(method, path, content=b"x", headers={"content-encoding": coding}), path, coding)


def test_a_query_that_is_odd(http: httpx.Client, refusals: Refusals):
    for prefix, route in all_routes():
        for name in route.query:
            for text in ODD_TEXTS:
                pairs = dict.fromkeys(set(route.query) & {"starting_on", "ending_before"}, "2026-01-01T00:00:00Z")
                query = "&".join(
                    f"{key}={quote(value, errors='surrogateescape')}" for key, value in {**pairs, name: text}.items()
                )
                answer = http.get(f"{prefix}{route.path}?{query}".removeprefix(f"{API_PREFIX}/"))
                refusals.check(answer, route.path, query)
                if name in ("limit", "offset", "day", "starting_on", "ending_before"):
                    assert answer.status_code == 400
    window = "billing/usage/events?starting_on={}&ending_before={}"
    for start, end in (("2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"), ("2126-01-01T00:00:00Z",) * 2, ("", "")):
        refusals.check(http.get(window.format(start, end)), start, end)
    refusals.check(http.get("billing/usage/events"))
    refusals.check(http.get(window.format("2126-01-01T00:00:00Z", "2126-01-01T01:00:00Z")))
    refusals.check(http.get(window.format("2026-01-01T00:30:00Z", "2026-01-01T01:00:00Z")))
    assert {"missing", "malformed", "out_of_range", "unknown_name"} <= refusals.codes


def test_a_path_that_is_odd(http: httpx.Client, owned: Owned, refusals: Refusals):
    for call in owned_calls(owned):
        method, _, body = call
        route, given = route_of(call)
        for name in given:
            for text in ODD_TEXTS:
                path = route.path.format(**{**given, name: quote(text, safe="", errors="surrogateescape") or "%20"})
                refusals.check(http.request(method, path.lstrip("/"), json=body), method, path)
    for path in ("archives", "traces", "external_weights"):
        for token in (*ODD_TEXTS, "x.y"):
            answer = http.get(f"{path}/{quote(token, safe='', errors='surrogateescape') or '.'}")
            assert answer.status_code == 404
            refusals.check(answer, path, token)
    for method, path in (("GET", "no/such/path"), ("PATCH", "sessions"), ("GET", "asample"), ("DELETE", "audit")):
        refusals.check(http.request(method, path), method, path)
    assert {"not_found", "malformed", "unknown_name", "not_supported"} <= refusals.codes


def test_a_protobuf_body_that_is_cut_or_damaged(http: httpx.Client, owned: Owned, refusals: Refusals):
    whole = encode_forward_backward(ForwardBackwardInput(owned.run_id, 3, (datum([1, 2]),), "cross_entropy"))
    for size in range(len(whole)):
        refusals.check(http.post("forward_backward", content=whole[:size]), size)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        refusals.check(http.post("forward_backward", content=bytes(damaged)), place)
    assert "malformed" in refusals.codes


def test_a_key_that_is_absent_or_wrong(server: GatewayServer, refusals: Refusals):
    with httpx.Client(base_url=server.url) as anybody:
        for prefix, route in all_routes():
            path = quote(f"{prefix}{route.path}", safe="/")
            for key in (None, b"", b"tml-wrong", b"eyJ.a.b", b"\xe9"):
                answer = anybody.request(route.method, path, headers=[] if key is None else [(b"x-api-key", key)])
                assert route.is_public or answer.status_code == 401
                refusals.check(answer, path)
                assert "tml-wrong" not in answer.text
        server.is_ready = False
        starting = anybody.get("readyz")
    assert (starting.status_code, starting.json()["code"], starting.json()["status"]) == (
        503,
        "unavailable",
        "starting",
    )


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[GatewayServer]:
    """A server that takes small bodies only."""
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5, max_body_bytes=2**16))
    running.start()
    yield running
    running.stop()


def test_a_body_over_the_limit_names_its_size_and_the_limit(narrow: GatewayServer):
    with httpx.Client(base_url=f"{narrow.url}{API_PREFIX}", headers={"X-API-Key": KEYS["alice"]}) as http:
        refusals = Refusals(http)
        for method, path, _ in calls_with_body(create_owned(http)):
            answer = http.request(method, path, content=b" " * 70_000)
            refusals.check(answer, path)
            content = answer.json()
            shown = answer.status_code, content["code"], content["value"], content["bound"]
            assert shown == (413, "too_large", 70_000, "at most 65536 bytes"), path


def test_every_code_is_used_and_every_refusal_of_the_gateway_has_one():
    used: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path.name == "error_help.py":
            continue
        if path.name == "errors.py" and path.parent == SOURCES:
            classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
            used |= {text for each in classes for text in strings(each)}
            continue
        used |= set(strings(tree))
        if path.relative_to(SOURCES).parts[0] in ("gateway", "protocol"):
            bare = [node.lineno for node in calls_of(tree, "InvalidRequest") if len(node.args) < 2]
            assert bare == [], f"{path}: a refusal without a code"
            loose = [
                node.lineno
                for node in calls_of(tree, "InvalidRequest")
                if BOUNDED & set(strings(node.args[1])) and not {"bound"} <= {each.arg for each in node.keywords}
            ]
            assert loose == [], f"{path}: a refusal without its bound"
    assert set(get_args(ErrorCode)) - used == set()


def strings(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]


def test_the_page_that_refusals_link_to_is_on_the_server_that_refused(http: httpx.Client):
    docs = http.post("get_info", json={}).json()["docs"]
    assert urlsplit(docs).netloc == http.base_url.netloc.decode()
