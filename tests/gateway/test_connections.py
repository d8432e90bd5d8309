"""Clients that are slow, greedy or broken hold a connection for a while, and nobody else up."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from openrl.config import GatewayConfig
from openrl.gateway.connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from tests.gateway.gateway_server import KEYS, GatewayServer
from tests.gateway.raw_client import create_owned
from tests.gateway.sdk_loop import SdkLoop

WINDOW_S = 0.5
HEAD = b"POST /api/v1/asample HTTP/1.1\r\nHost: x\r\nX-API-Key: tml-alice\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    config = GatewayConfig(
        long_poll_s=3.0, max_body_bytes=2**22, max_connections=400, head_timeout_s=1.0, min_body_rate=1000
    )
    running = GatewayServer(tmp_path, config, window_s=WINDOW_S)
    running.start()
    yield running
    running.stop()


def connect(server: GatewayServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    pieces: list[bytes] = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(2**16):
            pieces.append(piece)
    return b"".join(pieces)


def refusal(connection: socket.socket) -> tuple[int, str]:
    """Status and code of an answer after which the server closes."""
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"connection: close" in lines
    assert b"x-content-type-options: nosniff" in lines
    content = json.loads(body)
    assert content["docs"].endswith(f"#{content['code']}")
    return int(head.split()[1]), content["code"]


def trickle(connection: socket.socket, pieces: Iterator[bytes], pause_s: float) -> None:
    """Send on until the server has had enough."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)


def test_a_connection_that_asks_nothing_is_closed(server: GatewayServer):
    with connect(server) as connection:
        started = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("start", [b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\n", b"G", b"GET /api/v1/healthz"])
def test_a_head_that_does_not_end_is_refused(server: GatewayServer, start: bytes):
    with connect(server) as connection:
        connection.sendall(start)
        assert refusal(connection) == (408, "too_slow")


def test_a_head_that_trickles_is_refused_whole_time_not_each_byte(server: GatewayServer):
    with connect(server) as connection:
        started = time.monotonic()
        trickle(connection, (b"%c" % byte for byte in HEAD * 10), 0.1)
        assert time.monotonic() - started < 4


def test_empty_lines_do_not_keep_a_connection(server: GatewayServer):
    with connect(server) as connection:
        connection.sendall(b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        trickle(connection, iter([b"\r\n"] * 100), 0.1)
        assert time.monotonic() - started < 4


@pytest.mark.parametrize("length", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_a_body_that_trickles_is_refused(server: GatewayServer, length: bytes):
    with connect(server) as connection:
        connection.sendall(HEAD + length + b"\r\n\r\n")
        trickle(connection, iter([b"1\r\nx\r\n" if b"chunked" in length else b"x"] * 20), WINDOW_S / 5)
        connection.settimeout(5)
        assert read_all(connection)[:12] in (b"HTTP/1.1 408", b"")
    with connect(server) as connection:
        connection.sendall(HEAD + length + b"\r\n\r\n")
        assert refusal(connection) == (408, "too_slow")


def test_a_body_at_the_least_rate_is_taken(server: GatewayServer, tmp_path: Path):
    with httpx.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": KEYS["alice"]}) as http:

        def pieces() -> Iterator[bytes]:
            for _ in range(12):
                yield b" " * 400
                time.sleep(WINDOW_S / 4)
            yield b"{}"

        answer = http.post("create_session", content=pieces())
        assert (answer.status_code, answer.json()["type"]) == (200, "create_session")


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(server: GatewayServer):
    with connect(server) as connection:
        connection.sendall(HEAD.replace(b"tml-alice", b"tml-nobody") + b"Content-Length: 1000000\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 401")
        started = time.monotonic()
        trickle(connection, iter([b"x"] * 100), 0.1)
        assert time.monotonic() - started < 5


def test_an_answer_that_nobody_reads_is_not_kept(server: GatewayServer):
    with connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        started = time.monotonic()
        trickle(connection, iter([request] * 1000), 0.02)
        assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/healthz HTTP/1.1\r\nX: " + b"a" * 10 * MAX_HEAD_BYTES,
        b"GET /api/v1/healthz HTTP/1.1\r\n" + b"X: a\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET /api/v1/healthz HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(100_000)),
    ],
)
def test_a_head_that_is_too_large_is_refused(server: GatewayServer, head: bytes):
    with connect(server) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(head)
        answer = read_all(connection)
        assert answer[:12] in (b"HTTP/1.1 431", b"")  # a reset may overtake the answer


def test_what_is_not_http_is_refused_in_the_common_shape(server: GatewayServer):
    for junk in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"FOO / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with connect(server) as connection:
            connection.sendall(junk)
            assert refusal(connection) == (400, "malformed")
    both = HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(both)
        assert refusal(connection) == (400, "malformed")


def test_odd_but_valid_requests_are_answered(server: GatewayServer):
    for head in (
        b"GET /api/v1/healthz HTTP/1.1\r\nHost: [::1\r\n",
        b"GET /api/v1/nothing HTTP/1.1\r\nHost: [::1\r\n",
        b"GET /api/v1/sessions HTTP/1.1\r\nHost: a b@c:99999\r\n",
        b"GET /api/v1/nothing HTTP/1.1\r\nHost: \xff\r\n",
        b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n",
        b"HEAD /api/v1/healthz HTTP/1.1\r\nHost: x\r\n",
        b"GET http://other/api/v1/healthz HTTP/1.1\r\nHost: x\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n",
        b"GET /api/v1/healthz/ HTTP/1.0\r\n",
        b"GET //evil.example/%2f.. HTTP/1.1\r\nHost: x\r\n",
    ):
        with connect(server) as connection:
            connection.sendall(head + b"\r\n")
            answer = connection.recv(2**16)
            assert answer.startswith(b"HTTP/1.1 "), (head, answer)
            assert 200 <= int(answer[9:12]) < 500, (head, answer)
            assert not 300 <= int(answer[9:12]) < 400, (head, answer)


def test_requests_sent_ahead_are_bounded(server: GatewayServer):
    one = b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(one * (MAX_PIPELINED // 2))
        time.sleep(0.3)
        assert connection.recv(2**16).count(b"HTTP/1.1 200") == MAX_PIPELINED // 2
    with connect(server) as connection:
        connection.sendall(one * 1000)
        assert read_all(connection).count(b"HTTP/1.1 200") <= MAX_PIPELINED + 1


def test_a_trailer_is_no_header(server: GatewayServer):
    with connect(server) as connection:
        chunked = HEAD.replace(b"X-API-Key: tml-alice\r\n", b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(chunked + b"2\r\n{}\r\n0\r\nX-API-Key: tml-alice\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "endless",
    [
        b"0\r\nX: " + b"a" * 2**20,
        b"0\r\n" + b"X: a\r\n" * 2**17,
        b"1;" + b"a" * 2**20,
        b"1;a=b\r\nx\r\n2;" + b"a" * 2**20,
    ],
)
def test_what_comes_beside_a_body_is_bounded(server: GatewayServer, endless: bytes):
    with connect(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        started = time.monotonic()
        trickle(connection, iter([endless]), 0)
        assert read_all(connection)[:12] in (b"HTTP/1.1 431", b"")
        assert time.monotonic() - started < WINDOW_S


def test_hundreds_of_slow_clients_hold_up_nobody(server: GatewayServer):
    """More than there may be connections: the idle go, who works stays."""
    slow = (b"", b"POST /api/v1/asam", HEAD, HEAD + b"Content-Length: 100000\r\n\r\n{")
    with SdkLoop(server.url, KEYS["bob"], 40) as loop, contextlib.ExitStack() as stack:
        for i in range(600):
            connection = stack.enter_context(connect(server))
            with contextlib.suppress(OSError):
                connection.sendall(slow[i % len(slow)])
        assert loop.finish() < 30


def test_a_long_poll_outlasts_every_bound_of_slow_clients(server: GatewayServer):
    server.call(hold(server))
    with httpx.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": KEYS["alice"]}, timeout=30) as http:
        owned = create_owned(http)
        started = time.monotonic()
        answer = http.post("retrieve_future", json={"request_id": owned.request_id})
        assert (answer.status_code, answer.json()["type"]) == (408, "try_again")
        assert time.monotonic() - started > 2.9


async def hold(server: GatewayServer) -> None:
    server.scheduler.is_holding.set()
