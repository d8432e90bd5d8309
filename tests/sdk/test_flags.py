"""The optional ways of the client, each switched on in a server of its own."""

import asyncio
import pickle
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import tinker
from tinker import types

from tests.contracts.conftest import http_client
from tests.contracts.loops import TEXT, backward, batch, connect, new_run, prompt_of, sample, sampled, snapshot, train
from tests.contracts.raw_api import RawApi
from tests.contracts.test_sampling import wait_for_blocks
from tests.live_server import MODEL_NAME, LiveServer, start_server

FLAGS = """
[client]
sample_use_retrieve_futures = true
sample_join_sampling_session = true
sample_cancel_enabled = true
sample_cancel_max_batch_size = 2
proto_compress_fwdbwd = true
parallel_fwdbwd_chunks = true
fwdbwd_max_chunk_len = 2
complete_metadata = true
complete_metadata_bytes = 1
"""


@pytest.fixture(scope="module")
def flagged(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with every flag on, whose log names its answers; two tenants."""
    directory = tmp_path_factory.mktemp("flagged")
    (directory / "flags.toml").write_text(FLAGS)
    live = start_server(
        tiny_model_dir, directory / "data", "--config", str(directory / "flags.toml"), "--log-level", "debug"
    )
    yield live
    live.stop()


@pytest.fixture(scope="module")
def carol(flagged: LiveServer) -> Iterator[tinker.ServiceClient]:
    with connect(flagged.url, flagged.key) as service:
        yield service


@pytest.fixture(scope="module")
def dave(flagged: LiveServer) -> Iterator[tinker.ServiceClient]:
    """The other tenant."""
    with connect(flagged.url, flagged.other_key) as service:
        yield service


@pytest.fixture
def flagged_raw(flagged: LiveServer) -> Iterator[RawApi]:
    with http_client(flagged.url, flagged.key) as http:
        yield RawApi(http)


def answers(server: LiveServer, path: str) -> int:
    """How often the server has answered a path."""
    return (server.data_dir / "server.log").read_text().count(f'"route": "/api/v1/{path}"')


def wait_for_answers(server: LiveServer, path: str, number: int, timeout_s: float = 20) -> None:
    """Until the server has answered a path this often in all."""
    deadline = time.monotonic() + timeout_s
    while (answered := answers(server, path)) < number:
        assert time.monotonic() < deadline, f"{answered} answers of {number} after {timeout_s} s"
        time.sleep(0.05)


def expected(alice: tinker.ServiceClient, seeds: range) -> list[object]:
    """What the base model says on a server without flags."""
    plain = alice.create_sampling_client(base_model=MODEL_NAME).result()
    return [sample(plain, TEXT[:4], seed=seed, max_tokens=3) for seed in seeds]


def many(sampler: tinker.SamplingClient, seeds: range) -> list[object]:
    params = [types.SamplingParams(max_tokens=3, seed=seed) for seed in seeds]
    futures = [sampler.sample(prompt_of(TEXT[:4]), 1, each) for each in params]
    return [sampled(future.result()) for future in futures]


@pytest.mark.sdk("SamplingClient.sample")
def test_one_poll_serves_all_samples_of_a_client(
    flagged: LiveServer, alice: tinker.ServiceClient, carol: tinker.ServiceClient, dave: tinker.ServiceClient
):
    samplers = [each.create_sampling_client(base_model=MODEL_NAME).result() for each in (carol, dave)]
    before = answers(flagged, "retrieve_futures")
    right = expected(alice, range(20))
    assert [many(sampler, range(20)) for sampler in samplers] == [right, right]
    assert answers(flagged, "retrieve_futures") > before


@pytest.mark.sdk("SamplingClient.compute_logprobs")
def test_what_fails_fails_alone_under_the_common_poll(carol: tinker.ServiceClient):
    sampler = carol.create_sampling_client(base_model=MODEL_NAME).result()
    slow = sampler.sample(prompt_of(TEXT[:4]), 1, types.SamplingParams(max_tokens=100, seed=1, stop=[]))
    with pytest.raises(tinker.BadRequestError, match="max_tokens"):
        sampler.sample(prompt_of(TEXT[:4]), 1, types.SamplingParams(max_tokens=100_000)).result()
    assert len(sampler.compute_logprobs(prompt_of(TEXT)).result()) == len(TEXT)
    assert len(slow.result().sequences[0].tokens) == 100


def test_copies_of_a_client_have_numbers_of_their_own(
    flagged: LiveServer, carol: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TINKER_API_KEY", flagged.key)
    sampler = carol.create_sampling_client(base_model=MODEL_NAME).result()
    before = answers(flagged, "join_sampling_session")
    copies = [pickle.loads(pickle.dumps(sampler)) for _ in range(3)]
    futures = [
        each.sample(prompt_of(TEXT[:4]), 1, types.SamplingParams(max_tokens=3, seed=seed))
        for seed in range(5)
        for each in (sampler, *copies)
    ]
    results = [sampled(future.result()) for future in futures]
    assert all(results[4 * i : 4 * i + 4] == [results[4 * i]] * 4 for i in range(5))
    assert answers(flagged, "join_sampling_session") - before == 3
    stranger = tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle(), api_key=flagged.other_key)
    with pytest.raises(tinker.NotFoundError):
        sample(stranger, TEXT[:4])


def test_samples_given_up_free_their_memory(flagged: LiveServer, carol: tinker.ServiceClient):
    sampler = carol.create_sampling_client(base_model=MODEL_NAME).result()
    wait_for_blocks(flagged, lambda used: used == 0)
    long = types.SamplingParams(max_tokens=230, stop=[])
    admitted, cancelled = answers(flagged, "asample"), answers(flagged, "cancel_future")
    futures = [sampler.sample(prompt_of(TEXT), 64, long) for _ in range(6)]  # many: none ends before it is given up
    wait_for_answers(flagged, "asample", admitted + 6)
    carol.create_sampling_client(base_model=MODEL_NAME).result()  # those answers are read: it knows what to cancel
    wait_for_blocks(flagged, lambda used: used > 0)

    async def give_up() -> None:
        with suppress(TimeoutError):
            await futures[0].result_async(timeout=0.01)

    asyncio.run(give_up())
    for future in futures[1:]:
        future.future().cancel()
    wait_for_answers(flagged, "cancel_future", cancelled + 6)
    wait_for_blocks(flagged, lambda used: used == 0)
    assert sample(sampler, TEXT[:4], max_tokens=3)


def test_compressed_chunks_give_the_same_gradients(
    flagged: LiveServer, alice: tinker.ServiceClient, carol: tinker.ServiceClient
):
    plain, packed, data = new_run(alice), new_run(carol), batch(7)
    before = answers(flagged, "forward_backward")
    assert backward(packed, data) == pytest.approx(backward(plain, data))
    assert answers(flagged, "forward_backward") - before == 4  # chunks of two
    for ours, theirs in zip(train(packed, 2)[1].passed.logprobs, train(plain, 2)[1].passed.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)  # gradients of chunks are added in another order


@pytest.mark.parametrize("kind", ["snapshot", "inflight"])
def test_unnamed_weights_of_both_kinds_are_sampled(carol: tinker.ServiceClient, kind: Literal["snapshot", "inflight"]):
    run = new_run(carol)
    train(run, 1)
    sampler = run.save_weights_and_get_sampling_client(kind=kind).result()
    first = sample(sampler, TEXT[:4])
    assert first == sample(snapshot(run, f"same-as-{kind}"), TEXT[:4])
    train(run, 2)
    assert sample(run.save_weights_and_get_sampling_client(kind=kind).result(), TEXT[:4]) != first


def test_a_cursor_of_before_a_restart_still_holds(tiny_model_dir: Path, tmp_path: Path):
    live = start_server(tiny_model_dir, tmp_path)
    with http_client(live.url, live.key) as http:
        raw = RawApi(http)
        session = {"session_id": raw.new_session(), "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
        sampler = raw.post("create_sampling_session", **session)["sampling_session_id"]
        ids = [raw.post("asample", **sample_body(sampler, n))["request_id"] for n in range(2)]
        first = ended(raw, sampler, 0, 2)
    live.kill()
    again = start_server(tiny_model_dir, tmp_path)
    with http_client(again.url, again.key) as http:
        raw = RawApi(http)
        assert ended(raw, sampler, 0, 2).keys() == first.keys()
        later = raw.post("asample", **sample_body(sampler, 2))["request_id"]
        assert list(ended(raw, sampler, max(first.values()), 1)) == [later]
        assert set(first) == set(ids)
    again.stop()


def sample_body(sampler: str, seq_id: int) -> dict[str, Any]:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": TEXT}]}
    return {
        "sampling_session_id": sampler,
        "seq_id": seq_id,
        "prompt": prompt,
        "sampling_params": {"max_tokens": 2, "seed": seq_id},
    }


def ended(raw: RawApi, sampler: str, cursor: int, num: int) -> dict[str, int]:
    """The next samples that ended, each with the cursor of the answer that told of it."""
    found: dict[str, int] = {}
    while len(found) < num:
        target = {"type": "sampling_session", "sampling_session_id": sampler}
        answer = raw.post("retrieve_futures", target=target, prev_cursor=cursor)
        cursor = answer["cursor"]
        found |= {each["request_id"]: cursor for each in answer["completions"]}
    return found


def test_a_large_result_is_announced_once_and_only_to_those_who_allow_it(flagged_raw: RawApi):
    session = {"session_id": flagged_raw.new_session(), "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    sampler = flagged_raw.post("create_sampling_session", **session)["sampling_session_id"]
    request_id = flagged_raw.post("asample", **sample_body(sampler, 0))["request_id"]
    ended(flagged_raw, sampler, 0, 1)
    told = flagged_raw.post("retrieve_future", request_id=request_id, allow_metadata_only=True)
    assert told["status"] == "complete_metadata"
    result = flagged_raw.poll(request_id)
    assert len(result.content) == told["response_payload_size"]


def test_the_flags_are_told_to_clients(flagged: LiveServer):
    told = httpx.post(
        f"{flagged.url}/api/v1/client/config", json={"sdk_version": "0.38.0"}, headers={"X-API-Key": flagged.key}
    ).json()
    assert told["sample_use_retrieve_futures"]
    assert (told["fwdbwd_max_chunk_len"], told["fwdbwd_max_chunk_bytes_count"]) == (2, 5_000_000)
