"""JSON bodies and headers of every endpoint, spoiled in several places at once."""

import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.gateway.raw_client import Owned
from tests.gateway.refusals import Refusals
from tests.gateway.test_refusals import ODD, places
from tests.gateway.valid_calls import Call, free_calls, owned_calls
from tests.hostile.hostile_server import HostileServer
from tests.hostile.test_mutated_bodies import result_of_tenant
from tests.hostile.wire import damaged

HEADERS: dict[str, list[str]] = {
    "content-type": ["application/json", "application/x-protobuf", "application/json; charset=utf-16", "\xff", ""],
    "content-encoding": ["zstd", "gzip", "identity", "ZSTD", "zstd, zstd", ""],
    "accept": ["application/json", "*/*", "application/x-protobuf", "\xe9" * 100],
    "x-idempotency-key": ["a", "", "k" * 257, "\xff", "a\tb"],
    "x-tinker-weights-access-token": ["tml-nobody", "eyJ.a.b", "", "\xff"],
    "x-openrl-sampling-params": ["{}", '{"min_p": 0.1}', "[", '{"min_p": NaN}', '{"x": 1}', "[" * 5000],
    "x-api-key": ["tml-alice", "tml-", "eyJ", "\xff"],
    "range": ["bytes=0-0", "bytes=" + "0-1," * 500 + "1-2", "bytes=9-1", "lines=1"],
    "expect": ["100-continue", "200-ok"],
    "x-forwarded-for": ["1.2.3.4", "\xff"],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """The body with up to three places replaced, or its text damaged."""
    spoiled: Any = copy.deepcopy(body)
    for _ in range(draw(st.integers(0, 3))):
        *above, last = draw(st.sampled_from(sorted(places(spoiled), key=str) or [("x",)]))
        parent = spoiled
        for key in above:
            parent = parent[key]
        parent[last] = copy.deepcopy(draw(JSON))  # what is drawn is shared
    text = json.dumps(spoiled).encode()
    return draw(damaged(text)) if draw(st.integers(0, 3)) == 0 else text


@st.composite
def requests(draw: st.DrawFn, calls: list[Call]) -> tuple[str, str, bytes, list[tuple[bytes, bytes]]]:
    method, path, body = draw(st.sampled_from(calls))
    names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=3, unique=True))
    headers = [(name.encode(), draw(st.sampled_from(HEADERS[name])).encode("latin-1")) for name in names]
    return method, path, draw(bodies(body or {})), headers


def fuzz(server: HostileServer, owned: Owned, refusals: Refusals, num_cases: int) -> None:
    ended = f"sessions/{owned.session_id}/finish"  # the rest would meet nothing but that end
    calls = [call for call in [*owned_calls(owned), *free_calls()] if call[1] not in (ended, "unload_model")]

    @settings(
        max_examples=num_cases, deadline=None, phases=[Phase.generate], database=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )  # fmt: skip
    @given(request=requests(calls))
    def check(request: tuple[str, str, bytes, list[tuple[bytes, bytes]]]) -> None:
        method, path, body, headers = request
        answer = alice.request(method, path, content=body, headers=headers)
        refusals.check(answer, *request)

    with server.client("alice") as alice, server.bounded_memory():
        check()


def test_hundreds_of_spoiled_calls(server: HostileServer, owned: Owned, refusals: Refusals, bob: httpx.Client):
    fuzz(server, owned, refusals, 400)
    assert result_of_tenant(bob)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_spoiled_calls(server: HostileServer, owned: Owned, refusals: Refusals, bob: httpx.Client):
    fuzz(server, owned, refusals, 10_000)
    assert result_of_tenant(bob)
