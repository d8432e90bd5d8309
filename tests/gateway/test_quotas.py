"""What is over a quota is refused or held back before anything is stored, and polls say why requests wait."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

from openrl.config import GatewayConfig
from openrl.errors import QuotaExceeded
from openrl.gateway.quotas import LONGEST_REFUSAL_S, QuotaBook
from openrl.gateway.request_rate import RequestRate
from openrl.store.cluster import Pause, SchedulerStatus
from openrl.store.identities import OPERATOR
from openrl.store.memory import MemoryStore
from openrl.store.quotas import NO_LIMITS, Bound, Limits, QuotaRow
from tests.gateway.gateway_server import MODEL, GatewayServer
from tests.gateway.raw_client import Owned, post, sample_body
from tests.store.rows_for_tests import ALICE, request, run, sample, session

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Clock:
    """Moves as tests say."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[GatewayServer]:
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.2), clock)
    running.start()
    yield running
    running.stop()


def put(server: GatewayServer, clock: Clock, project_id: str = "", **limits: float) -> None:
    server.call(server.store.put_quota(QuotaRow("alice", project_id, Limits(**limits), 1.0), OPERATOR))
    clock.now += 60.0


def test_too_many_requests_get_429_and_come_again_when_there_is_room(
    http: httpx.Client, owned: Owned, server: GatewayServer, clock: Clock
):
    put(server, clock, queued_requests=2)
    server.scheduler.is_holding.set()
    first, second = (post(http, "asample", sample_body(owned.sampler_id, n))["request_id"] for n in (2, 3))
    answer = http.post("asample", json=sample_body(owned.sampler_id, 4))
    assert (answer.status_code, answer.headers["Retry-After"], answer.json()["code"]) == (429, "2", "slow_down")
    assert "queued_requests of this tenant: 2 of 2 have not finished" in answer.json()["detail"]
    held = server.call(server.store.num_queued("alice"))
    assert held == {"default": 2}  # nothing was stored of it
    post(http, "cancel_future", {"request_id": first})
    clock.now += 1.0
    third = post(http, "asample", sample_body(owned.sampler_id, 4))["request_id"]
    assert len({first, second, third}) == 3


def test_what_others_of_its_run_wait_for_is_let_in(
    http: httpx.Client, owned: Owned, server: GatewayServer, clock: Clock
):
    put(server, clock, queued_requests=1)
    held = sample_body(owned.sampler_id, 2)
    server.scheduler.is_holding.set()
    post(http, "asample", held)
    step: dict[str, Any] = {"model_id": owned.run_id, "adam_params": {}}
    assert http.post("optim_step", json={**step, "seq_id": 4}).status_code == 429
    later = request(owned.run_id, 5, "alice", session_id=owned.session_id, kind="sample")  # the kind that is held
    server.call(server.store.enqueue(later, b""))
    clock.now += 1.0
    assert http.post("optim_step", json={**step, "seq_id": 4}).status_code == 200
    assert http.post("optim_step", json={**step, "seq_id": 6}).status_code == 429


async def test_a_number_that_is_refused_for_long_is_let_in_before_its_client_gives_it_up():
    clock = Clock()
    store = MemoryStore(clock=clock)
    await store.create_session(session("s1"))
    await store.create_run(run("r1", session_id="s1"), request("r1", 0, session_id="s1"), b"")
    await store.enqueue(sample("x", 1, session_id="s1"), b"")
    book = QuotaBook(store, Limits(queued_requests=2), clock)
    with pytest.raises(QuotaExceeded):
        await book.admit_queued(ALICE, "s1", "run:r1:1", "r1", 1)
    clock.now += LONGEST_REFUSAL_S + 1
    with pytest.raises(QuotaExceeded):
        await book.admit_queued(ALICE, "s1", "sampler:x:2")  # clients repeat a sample for ever
    await book.admit_queued(ALICE, "s1", "run:r1:1", "r1", 1)
    with pytest.raises(QuotaExceeded):
        await book.admit_queued(ALICE, "s1", "run:r1:2", "r1", 2)


def test_a_save_over_the_quota_is_a_failed_future_and_the_run_goes_on(
    alice: tinker.ServiceClient, bob: tinker.ServiceClient, server: GatewayServer, clock: Clock
):
    put(server, clock, stored_bytes=10)
    mine, others = (
        service.create_lora_training_client(base_model=MODEL.name, rank=8).result() for service in (alice, bob)
    )
    mine.save_state("first").result()  # fits as far as can be known beforehand
    for save in (mine.save_state, mine.save_weights_for_sampler):
        with pytest.raises(tinker.RequestFailedError, match=r"stored_bytes of this tenant is reached: 7,\d\d\d of 10"):
            save("second").result()
    assert mine.optim_step(tinker.types.AdamParams()).result().metrics
    for name in ("first", "second"):
        others.save_state(name).result()
    put(server, clock, stored_bytes=1e6)
    assert mine.save_state("second").result().path.endswith("/weights/second")


def test_runs_over_the_quota_are_refused_at_once_and_nothing_else_is(
    alice: tinker.ServiceClient, bob: tinker.ServiceClient, server: GatewayServer, clock: Clock
):
    put(server, clock, live_runs=2)
    first, _ = (alice.create_lora_training_client(base_model=MODEL.name, rank=8).result() for _ in range(2))
    with pytest.raises(tinker.PermissionDeniedError, match="quota live_runs of this tenant is reached: 2 of 2 in use"):
        alice.create_lora_training_client(base_model=MODEL.name, rank=8).result()
    path = first.save_state("w").result().path
    with pytest.raises(tinker.PermissionDeniedError, match="live_runs"):
        alice.create_training_client_from_state(path).result()
    bob.create_lora_training_client(base_model=MODEL.name, rank=8).result()
    server.call(server.store.close_run(first.model_id))
    alice.create_training_client_from_state(path).result()


def test_polls_say_why_a_request_waits(http: httpx.Client, owned: Owned, server: GatewayServer, clock: Clock):
    server.scheduler.is_holding.set()
    request_id = post(http, "asample", sample_body(owned.sampler_id, 2))["request_id"]
    server.call(server.store.assign_project("alice", owned.session_id, "p", 1.0))

    def told(*models: str, **pauses: str) -> tuple[str, str | None]:
        published = {name.replace("_", "/"): Pause("paused_rate_limit", text) for name, text in pauses.items()}
        server.call(server.store.cluster.publish_status(SchedulerStatus(models, published, 1)))
        clock.now += 60.0
        answer = http.post("retrieve_future", json={"request_id": request_id})
        assert answer.status_code == 408
        content = answer.json()
        return content["queue_state"], content.get("queue_state_reason")

    assert told(MODEL.name) == ("active", None)
    assert told(MODEL.name, bob="full") == ("active", None)
    assert told(MODEL.name, alice="full") == ("paused_rate_limit", "full")
    assert told(MODEL.name, alice_q="full") == ("active", None)
    assert told(MODEL.name, alice_p="full") == ("paused_rate_limit", "full")
    state, reason = told("another")
    assert state == "paused_capacity"
    assert reason == "no worker serves base model 'tiny/llama' at the moment (1 worker connected); it waits for one"


async def test_requests_over_the_rate_wait_a_little_and_are_refused_when_it_would_be_long():
    store = MemoryStore()
    await store.put_quota(QuotaRow("fast", "", Limits(requests_per_s=math.inf), 1.0), OPERATOR)
    clock, slept = Clock(), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))

    rate = RequestRate(QuotaBook(store, Limits(requests_per_s=2), clock), clock, sleep)
    for _ in range(12):
        await rate.admit("slow", "/asample")
    assert slept == [0.5 * n for n in range(1, 11)]
    with pytest.raises(QuotaExceeded) as refused:
        await rate.admit("slow", "/asample")
    assert refused.value.retry_after_s == pytest.approx(5.5)
    await rate.admit("slow", "/retrieve_future")
    await asyncio.gather(*(rate.admit("fast", "/asample") for _ in range(100)))
    clock.now += 1.0
    await rate.admit("slow", "/asample")
    assert slept[-1] == 4.5


async def test_the_limits_of_a_project_come_on_top_of_the_tenants():
    store = MemoryStore()
    await store.put_quota(QuotaRow(ALICE, "p", Limits(live_runs=1), 1.0), OPERATOR)
    await store.put_quota(QuotaRow(ALICE, "", Limits(live_runs=5), 1.0), OPERATOR)
    book = QuotaBook(store, Limits(live_runs=9, stored_bytes=7), Clock())
    assert await book.bound(ALICE, "p", "live_runs") == Bound(5, 1)
    assert await book.bound(ALICE, "q", "live_runs") == Bound(5)
    assert await book.bound("other", "q", "live_runs") == Bound(9)
    assert await book.bound(ALICE, "p", "stored_bytes") == Bound(7)
    assert not await QuotaBook(store, NO_LIMITS, Clock()).has("other", "live_runs")
