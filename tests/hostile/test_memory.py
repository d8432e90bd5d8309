"""What hostile or merely large bodies may cost, at once, while another tenant works on."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import zstandard

from openrl.gateway.app import API_PREFIX
from openrl.protocol.body_parts import MAX_PARTS
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from tests.gateway.gateway_server import KEYS
from tests.gateway.raw_client import Owned, datum, sample_body
from tests.gateway.sdk_loop import SdkLoop
from tests.hostile.frames import bomb, header, repeated
from tests.hostile.hostile_server import HostileServer, start
from tests.hostile.wire import Field, encode

AT_ONCE = 16
EXPLODING = encode((Field(1, 2, b"a:train:0"), Field(2, 0, 3))) + Field(3, 2, b"").encode() * 4 * MAX_PARTS
EXPLOSIONS = {
    "zstd bomb of 16 GiB": (bomb(2**34), "zstd", 413),
    "zstd bomb just below the limit": (bomb(2**28), "zstd", 413),
    "zstd window of 128 MiB": (bomb(2**20, window_exponent=17), "zstd", 400),
    "zstd that declares 2**63 bytes": (header(2**63) + repeated(100), "zstd", 400),
    "zstd in zstd": (zstandard.compress(bomb(2**30)), "zstd", 400),
    "two million datums": (EXPLODING, None, 404),
    "two million datums in zstd": (zstandard.compress(EXPLODING), "zstd", 404),
}
JSON_EXPLOSIONS = {
    "arrays": b'{"x":[' + b"[]," * 2**22 + b"1]}",
    "objects": b'{"prompt":{"chunks":[' + b"{}," * 2**22 + b"{}]}}",
    "keys": b"{" + b",".join(b'"%d":1' % i for i in range(2**20)) + b"}",
    "texts": b'{"x":[' + b'"",' * 2**22 + b"1]}",
    "numbers": b'{"x":[' + b"1," * 2**23 + b"1]}",
    "digits": b'{"seq_id":' + b"1" * 2**24 + b"}",
    "exponent": b'{"seq_id":1e' + b"1" * 2**24 + b"}",
    "depth": b"[" * 2**24,
    "one text": b'{"session_id":"' + b"x" * 2**24 + b'"}',
    "escapes": b'{"session_id":"' + b"\\u00e9" * 2**21 + b'"}',
}


@contextmanager
def neighbour(server: HostileServer) -> Generator[None]:
    """Another tenant trains and samples meanwhile, and has right answers."""
    with SdkLoop(server.url, KEYS["bob"], 10) as loop:
        yield
        loop.finish(120)


async def send_all(server: HostileServer, path: str, bodies: list[tuple[bytes, str | None]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(bodies))
    headers = {"X-API-Key": KEYS["alice"]}
    async with httpx.AsyncClient(base_url=f"{server.url}{API_PREFIX}", limits=limits, timeout=120) as client:
        return await asyncio.gather(
            *(
                client.post(path, content=body, headers=headers | ({"Content-Encoding": coding} if coding else {}))
                for body, coding in bodies
            )
        )


def test_bombs_at_once_take_no_memory_and_nobodys_turn(server: HostileServer):
    with neighbour(server), server.bounded_memory():
        for name, (body, coding, status) in EXPLOSIONS.items():
            started = time.monotonic()
            answers = asyncio.run(send_all(server, "forward_backward", [(body, coding)] * AT_ONCE))
            assert {answer.status_code for answer in answers} == {status}, (name, answers[0].text)
            assert time.monotonic() - started < 60, name


def test_json_that_explodes_is_refused_before_it_is_read(server: HostileServer):
    for path in ("asample", "forward", "create_session", "sessions/search", "optim_step"):
        for name, body in JSON_EXPLOSIONS.items():
            with server.bounded_memory():
                answers = asyncio.run(send_all(server, path, [(body, None)] * 2))
            # What they do not know, endpoints ignore.
            assert {answer.status_code for answer in answers} <= {200, 400, 413}, (path, name, answers[0].text)


def test_a_prompt_of_a_million_tokens_is_refused_quickly(server: HostileServer, owned: Owned, alice: httpx.Client):
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [151] * 1_000_000}]}
    with server.bounded_memory():
        started = time.monotonic()
        answer = alice.post("asample", json=sample_body(owned.sampler_id, 9, prompt=prompt))
        assert (answer.status_code, answer.json()["code"]) == (400, "context_exceeded")
        assert "prompt of 1000000 tokens plus max_tokens 4 is over the context length 128" in answer.json()["detail"]
        body = encode_forward_backward(
            ForwardBackwardInput(owned.run_id, 60, (datum([1] * 1_000_000),), "cross_entropy")
        )
        answer = alice.post("forward_backward", content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "context_exceeded")
        assert time.monotonic() - started < 20
    stops = {"max_tokens": 4, "stop": ["x"] * 300_000}
    assert alice.post("asample", json=sample_body(owned.sampler_id, 9, sampling_params=stops)).status_code == 400


@pytest.fixture
def default_server(tmp_path: Path) -> Generator[HostileServer]:
    running = start(tmp_path)
    yield running
    running.stop()
    running.check_log()


def test_fifty_large_bodies_wait_for_each_other(default_server: HostileServer):
    """Of 96 MiB each, 4.7 GiB in all: the budget of 320 MiB holds one of them, as one tenant may have half of it."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(96):
            yield bytes(2**20)

    async def upload(client: httpx.AsyncClient) -> int:
        headers = {"X-API-Key": KEYS["alice"], "Content-Length": str(96 * 2**20)}
        try:
            return (await client.post("forward_backward", content=pieces(), headers=headers)).status_code
        except httpx.TransportError:
            return 0

    async def upload_all() -> list[int]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(
            base_url=f"{default_server.url}{API_PREFIX}", limits=limits, timeout=120
        ) as client:
            return await asyncio.gather(*(upload(client) for _ in range(50)))

    with neighbour(default_server), default_server.bounded_memory(300 * 2**20):
        statuses = asyncio.run(upload_all())
    assert set(statuses) <= {400, 503}, Counter(statuses)
    assert statuses.count(400) >= 3
