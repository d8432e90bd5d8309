"""Ids and paths that try to leave their tenant are answered as if there were nothing."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from tests.gateway.raw_client import Owned, create_owned, datum
from tests.gateway.refusals import Refusals
from tests.gateway.valid_calls import Call, owned_calls, route_of

NOBODYS = "00000000-0000-4000-8000-000000000000"
WIDE = {ord(c): ord(c) + 0xFEE0 for c in "0123456789abcdef"}
CYRILLIC = str.maketrans("aceopx", "асеорх")


def tricks(own: str, foreign: str) -> list[str]:
    """Texts that a careless server might take for `foreign`."""
    return [
        *(
            f"{own}/../{foreign}",
            f"../{foreign}",
            f"./{foreign}",
            f"{own}/../../{foreign}",
            f"..\\{foreign}",
            f"//{foreign}",
        ),
        *(
            f"{foreign}/",
            f"{foreign}/.",
            f"{foreign}\x00",
            f"\x00{foreign}",
            f"{foreign}\x00{own}",
            f"{own}\x00/../{foreign}",
        ),
        *(
            f" {foreign}",
            f"{foreign} ",
            f"{foreign}\n",
            f"{foreign}\t",
            f"\ufeff{foreign}",
            f"{foreign}\u200b",
            f"{foreign}%00",
        ),
        *(
            foreign.upper(),
            foreign.translate(WIDE),
            foreign.translate(CYRILLIC),
            foreign[:-1],
            f"{foreign}0",
            quote(foreign, safe=""),
        ),
        *(
            foreign.replace("-", "\u2010"),
            foreign.replace(":", "\uff1a"),
            foreign.replace("-", "_"),
            foreign.replace("-", "%"),
        ),
        *(
            f"{foreign}' OR '1'='1",
            f"{foreign}%",
            "%",
            "_" * len(foreign),
            f"{foreign};--",
            "{foreign}",
            "${foreign}",
            "*",
        ),
    ]


@pytest.fixture(scope="module")
def bobs(bob: httpx.Client) -> Owned:
    return create_owned(bob)


def bodies_with(value: Any, old: str, new: str) -> Any:
    """The body with one id replaced, wherever it is a text's part."""
    if isinstance(value, dict):
        return {key: bodies_with(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [bodies_with(each, old, new) for each in value]
    return value.replace(old, new) if isinstance(value, str) else value


def attempts(call: Call, foreign: Owned, own: Owned) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """The call of a stranger's thing with its id written in other ways, in its path or in its body."""
    method, path, body = call
    route, given = route_of(call)
    for name, value in given.items():
        if name in ("kind", "name"):
            continue
        for text in tricks(own.session_id, value):
            filled = {key: quote(each, safe="") for key, each in {**given, name: text}.items()}
            yield method, route.path.format(**filled).lstrip("/"), body
    for old, new in ((foreign.session_id, own.session_id), (foreign.request_id, own.request_id)):
        if body is not None and bodies_with(body, old, "") != body:
            for text in tricks(new, old):
                yield method, path, bodies_with(body, old, text)


def test_no_way_of_writing_anothers_id_reaches_it(owned: Owned, bobs: Owned, bob: httpx.Client, alice: httpx.Client):
    try_ways(owned, bobs, bob, alice, every=5)


@pytest.mark.slow
def test_no_way_of_all_reaches_it(owned: Owned, bobs: Owned, bob: httpx.Client, alice: httpx.Client):
    try_ways(owned, bobs, bob, alice, every=1)


def try_ways(owned: Owned, bobs: Owned, bob: httpx.Client, alice: httpx.Client, every: int) -> None:
    """Of all calls with all ways one in so many; 36 ways a thing, so that a step of 5 takes others for each call."""
    refusals = Refusals(bob)
    before = alice.get(f"sessions/{owned.session_id}").json(), alice.get("checkpoints").json()
    ways = [way for call in owned_calls(owned) for way in attempts(call, owned, bobs)]
    assert len(ways) > 1000
    for method, path, body in ways[::every]:
        answer = bob.request(method, path, json=body)
        refusals.check(answer, method, path, body)
        assert answer.status_code in (400, 404, 405), (method, path, body, answer.text)
    for text in tricks(bobs.run_id, owned.run_id):
        fields = ForwardBackwardInput(text, 50, (datum([1, 2]),), "cross_entropy")
        answer = bob.post("forward_backward", content=encode_forward_backward(fields))
        refusals.check(answer, text)
        assert answer.status_code in (400, 404)
    assert (alice.get(f"sessions/{owned.session_id}").json(), alice.get("checkpoints").json()) == before


def anonymous(text: str, owned: Owned) -> str:
    return text.replace(owned.session_id, "?").replace(owned.request_id, "?")


def test_anothers_thing_and_none_take_the_same_answer_and_time(owned: Owned, bob: httpx.Client):
    """Times are compared by call; the bound leaves room for a busy machine, not for another look-up."""
    fields = {name: value.replace(owned.session_id, NOBODYS) for name, value in asdict(owned).items()}
    missing = replace(owned, **{**fields, "request_id": NOBODYS})
    ratios: list[float] = []
    for theirs, nobodys in zip(owned_calls(owned), owned_calls(missing), strict=True):
        if theirs[1] in ("retrieve_future", "retrieve_futures"):  # waits for what may still be submitted
            continue
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(5):
            answers = [timed(seconds[i], bob.request, *call) for i, call in enumerate((theirs, nobodys))]
            shown = [anonymous(answer.text, each) for answer, each in zip(answers, (owned, missing), strict=True)]
            assert (answers[0].status_code, shown[0]) == (404, shown[1])
        ratios.append(statistics.median(seconds[0]) / statistics.median(seconds[1]))
    assert 0.6 < statistics.median(ratios) < 1.6, ratios


def timed(
    seconds: list[float], request: Callable[..., httpx.Response], method: str, path: str, body: dict[str, Any] | None
) -> httpx.Response:
    started = time.perf_counter()
    answer = request(method, path, json=body)
    seconds.append(time.perf_counter() - started)
    return answer
