"""Contracts 18-26: generated tokens, their log-probabilities, stops, seeds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from tinker import types
from transformers import AutoTokenizer

from tests.contracts.conftest import http_client
from tests.contracts.loops import (
    TEXT,
    Sampled,
    backward,
    datum,
    new_run,
    numbers,
    prompt_of,
    sample,
    sampled,
    snapshot,
    step_metrics,
    train,
)
from tests.contracts.raw_api import RawApi
from tests.contracts.reference_model import ReferenceModel
from tests.contracts.saved_state import download
from tests.live_server import MODEL_NAME, LiveServer

CONTEXT_LENGTH = 256
EOS = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained run, a named snapshot of it, and the same weights in plain PEFT."""

    run: tinker.TrainingClient
    sampler: tinker.SamplingClient
    twin: ReferenceModel


@pytest.fixture(scope="module")
def subject(
    server: LiveServer,
    alice: tinker.ServiceClient,
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    run = new_run(alice, rank=8)
    train(run, 4)
    path = run.save_weights_for_sampler("subject").result().path
    with http_client(server.url, server.key) as http:
        adapter = download(http, path, tmp_path_factory.mktemp("adapter"))
    sampler = alice.create_sampling_client(model_path=path).result()
    return Subject(run, sampler, ReferenceModel(tiny_model_dir, adapter))


@pytest.fixture(scope="module")
def ending(alice: tinker.ServiceClient) -> tinker.SamplingClient:
    """Greedy from [5, 6, 7], it says EOS."""
    run = new_run(alice)
    for _ in range(12):
        backward(run, [datum([5, 6, 7, EOS, 8, 9], [0.0, 0.0, 1.0, 0.0, 0.0])])
        step_metrics(run, types.AdamParams(learning_rate=2e-2))
    return snapshot(run)


def largest_difference(got: list[float], expected: list[float]) -> float:
    assert len(got) == len(expected)
    return float(np.abs(np.array(got) - np.array(expected)).max())


# 18, 19
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logprobs_are_those_of_plain_transformers_at_the_temperature(subject: Subject, temperature: float):
    [got] = sample(subject.sampler, TEXT, temperature=temperature, max_tokens=40, stop=[])
    expected = subject.twin.next_token_logprobs(TEXT + got.tokens, temperature)[len(TEXT) - 1 :]
    assert largest_difference(got.logprobs, expected) < 1e-4


# 18
def test_the_likeliest_tokens_of_prefill_and_decode_are_those_of_plain_transformers(subject: Subject):
    params = types.SamplingParams(max_tokens=12, seed=4, stop=[])
    response = subject.sampler.sample(
        prompt_of(TEXT), 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=6, topk_sample_logprobs=6
    ).result()
    [sequence] = response.sequences
    expected_NV = subject.twin.logprobs(TEXT + list(sequence.tokens)).detach()[:-1]
    assert response.topk_prompt_logprobs is not None
    assert sequence.topk_logprobs is not None
    rows = [*response.topk_prompt_logprobs[1:], *sequence.topk_logprobs]
    assert len(rows) == len(expected_NV)
    for row, expected_V in zip(rows, expected_NV, strict=True):
        assert row is not None
        assert largest_difference([value for _, value in row], expected_V.topk(6).values.tolist()) < 1e-4
        assert [token for token, _ in row] == expected_V.topk(6).indices.tolist()


# 19
def test_a_cut_distribution_is_reported_before_the_cut(subject: Subject):
    cuts: list[dict[str, Any]] = [{"top_k": 3}, {"top_p": 0.2}]
    for cut in cuts:
        [got] = sample(subject.sampler, TEXT, temperature=0.8, max_tokens=20, stop=[], **cut)
        expected = subject.twin.next_token_logprobs(TEXT + got.tokens, 0.8)[len(TEXT) - 1 :]
        assert largest_difference(got.logprobs, expected) < 1e-4


# 19
def test_prompt_logprobs_are_at_temperature_one_and_the_first_is_absent(subject: Subject):
    params = types.SamplingParams(max_tokens=1, temperature=0.3)
    response = subject.sampler.sample(prompt_of(TEXT), 1, params, include_prompt_logprobs=True).result()
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[0] is None
    got = [each for each in response.prompt_logprobs[1:] if each is not None]
    assert largest_difference(got, subject.twin.next_token_logprobs(TEXT)) < 1e-4


# 20
def test_the_samplers_logprobs_are_the_trainers(subject: Subject):
    tokens = [(37 * i) % 512 for i in range(CONTEXT_LENGTH - 1)]  # scoring a prompt also draws one token
    trained = numbers(subject.run.forward([datum(tokens)], "cross_entropy").result()).logprobs[0]
    scored = subject.sampler.compute_logprobs(prompt_of(tokens)).result()
    assert scored[0] is None
    assert largest_difference([each for each in scored[1:] if each is not None], trained) <= 1e-5


# 20: and so are those of the tokens it generates.
def test_generated_logprobs_are_the_trainers(subject: Subject):
    [got] = sample(subject.sampler, TEXT, max_tokens=60, stop=[])
    trained = numbers(subject.run.forward([datum(TEXT + got.tokens)], "cross_entropy").result()).logprobs[0]
    assert largest_difference(got.logprobs, trained[len(TEXT) - 1 :]) <= 1e-5


# 21
@pytest.mark.parametrize("num_steps", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_snapshot_stays_as_it_was_while_its_run_goes_on(alice: tinker.ServiceClient, num_steps: int):
    run = new_run(alice)
    train(run, 2)
    path = run.save_weights_for_sampler("kept").result().path
    named, unnamed = alice.create_sampling_client(model_path=path).result(), snapshot(run)
    before = sample(named, TEXT, num_samples=2)
    assert sample(unnamed, TEXT, num_samples=2) == before
    train(run, num_steps)
    assert sample(named, TEXT, num_samples=2) == before
    assert sample(unnamed, TEXT, num_samples=2) == before
    assert sample(alice.create_sampling_client(model_path=path).result(), TEXT, num_samples=2) == before
    assert sample(snapshot(run), TEXT, num_samples=2) != before


# 22
def test_a_seed_reproduces_whatever_else_is_in_the_batch(subject: Subject, ending: tinker.SamplingClient):
    alone = sample(subject.sampler, TEXT, num_samples=4, seed=2**64 - 3, max_tokens=24)
    others = [
        sampler.sample(prompt_of(TEXT[i % 7 :]), 1 + i % 3, types.SamplingParams(max_tokens=5 + 7 * (i % 4)))
        for i in range(16)
        for sampler in (subject.sampler, ending)
    ]
    crowded = [sample(subject.sampler, TEXT, num_samples=4, seed=2**64 - 3, max_tokens=24) for _ in range(3)]
    for other in others:
        other.result()
    assert crowded == [alone] * 3
    assert len({tuple(each.tokens) for each in alone}) == 4
    assert sample(subject.sampler, TEXT, num_samples=4, seed=5, max_tokens=24) != alone


# 22
def test_samples_without_a_seed_differ(subject: Subject):
    params = types.SamplingParams(max_tokens=16)
    responses = [subject.sampler.sample(prompt_of(TEXT), 2, params) for _ in range(3)]
    assert len({tuple(each.tokens) for r in responses for each in sampled(r.result())}) == 6


# 22
def test_greedy_is_the_limit_of_cold_narrow_sampling(subject: Subject):
    [greedy] = sample(subject.sampler, TEXT, temperature=0.0, max_tokens=24)
    limits: list[dict[str, Any]] = [{"temperature": 1e-6}, {"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-9}]
    for limit in limits:
        assert [each.tokens for each in sample(subject.sampler, TEXT, 2, max_tokens=24, **limit)] == [greedy.tokens] * 2
    tokens = list(TEXT)
    for token in greedy.tokens:
        assert token == int(subject.twin.logprobs(tokens).detach()[-1].argmax())
        tokens.append(token)


# 23
def test_a_stop_token_ends_the_sample_and_is_its_last(subject: Subject):
    [free] = sample(subject.sampler, TEXT, max_tokens=30, stop=[])
    assert (len(free.tokens), free.stop_reason) == (30, "length")
    at = next(i for i in range(5, 30) if free.tokens[i] not in free.tokens[:i])
    [stopped] = sample(subject.sampler, TEXT, max_tokens=30, stop=[511, free.tokens[at]])
    assert stopped == Sampled(free.tokens[: at + 1], free.logprobs[: at + 1], "stop")
    [full] = sample(subject.sampler, TEXT, max_tokens=at + 1, stop=[free.tokens[at]])
    assert full.tokens == stopped.tokens
    assert full.stop_reason == "stop"


# 23
@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_stop_string_may_span_tokens(subject: Subject, tiny_model_dir: Path, in_a_list: bool):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    seed, free, at, text = find_spanning_text(subject.sampler, tokenizer)
    stop: Any = ["never said", text] if in_a_list else text
    [stopped] = sample(subject.sampler, TEXT, max_tokens=60, seed=seed, stop=stop)
    assert stopped == Sampled(free.tokens[: at + 2], free.logprobs[: at + 2], "stop")


def find_spanning_text(sampler: tinker.SamplingClient, tokenizer: Any) -> tuple[int, Sampled, int, str]:
    """A seed, what it says, and a text of two characters that first appears across tokens `at` and `at + 1`."""
    for seed in range(20):
        [free] = sample(sampler, TEXT, max_tokens=60, seed=seed, stop=[])
        for at in range(1, 58):
            text = tokenizer.decode([free.tokens[at]])[-1:] + tokenizer.decode([free.tokens[at + 1]])[:1]
            whole = tokenizer.decode(free.tokens[: at + 2])
            if text.isascii() and text.isprintable() and whole.find(text) >= len(tokenizer.decode(free.tokens[:at])):
                return seed, free, at, text
    raise AssertionError("no two neighbours of plain text in 20 samples")


# 23
def test_without_stops_eos_ends_and_with_an_empty_list_nothing_does(ending: tinker.SamplingClient):
    [absent] = sample(ending, [5, 6, 7], temperature=0.0, max_tokens=6)
    assert (absent.tokens, absent.stop_reason) == ([EOS], "stop")
    [nothing] = sample(ending, [5, 6, 7], temperature=0.0, max_tokens=6, stop=[])
    assert nothing.tokens[0] == EOS
    assert (len(nothing.tokens), nothing.stop_reason) == (6, "length")


# 23
def test_without_max_tokens_a_sample_may_fill_the_context(subject: Subject):
    prompt = [(5 * i) % 512 for i in range(CONTEXT_LENGTH - 9)]
    [got] = sample(subject.sampler, prompt, max_tokens=None, stop=[])
    assert (len(got.tokens), got.stop_reason) == (9, "length")


# 23
def test_more_than_the_context_is_refused_with_numbers(subject: Subject):
    prompt = prompt_of([1] * 250)
    with pytest.raises(tinker.BadRequestError, match=r"prompt of 250 tokens plus max_tokens 7 .* 256"):
        subject.sampler.sample(prompt, 1, types.SamplingParams(max_tokens=7)).result()
    with pytest.raises(tinker.BadRequestError, match="256"):
        subject.sampler.sample(prompt_of([1] * 256), 1, types.SamplingParams()).result()


# 24
def test_the_base_model_samples_beside_adapters(alice: tinker.ServiceClient, subject: Subject, tiny_model_dir: Path):
    base = alice.create_sampling_client(base_model=MODEL_NAME).result()
    params = types.SamplingParams(max_tokens=20, seed=3, stop=[])
    samplers = [base, subject.sampler] * 4
    futures = [each.sample(prompt_of(TEXT), 1, params) for each in samplers]
    together = [sampled(future.result())[0] for future in futures]
    assert together[0::2] == sample(base, TEXT, max_tokens=20, seed=3, stop=[]) * 4
    assert together[1::2] == sample(subject.sampler, TEXT, max_tokens=20, seed=3, stop=[]) * 4
    expected = ReferenceModel(tiny_model_dir, None).next_token_logprobs(TEXT + together[0].tokens)[len(TEXT) - 1 :]
    assert largest_difference(together[0].logprobs, expected) < 1e-4


# 25
@pytest.mark.parametrize("num_requests", [256, pytest.param(4096, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_many_simultaneous_samples_queue_and_finish(subject: Subject, num_requests: int):
    params = [types.SamplingParams(max_tokens=3, seed=i, stop=[]) for i in range(num_requests)]
    futures = [subject.sampler.sample(prompt_of(TEXT[:4]), 1, each) for each in params]
    results = [sampled(future.result())[0] for future in futures]
    assert all(len(each.tokens) == 3 for each in results)
    for i in (0, num_requests // 2, num_requests - 1):
        assert sample(subject.sampler, TEXT[:4], max_tokens=3, seed=i, stop=[]) == [results[i]]


# 25
def test_cancelled_samples_free_their_memory(server: LiveServer, raw: RawApi):
    session = raw.new_session()
    sampling = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    sampler = raw.post("create_sampling_session", **sampling)["sampling_session_id"]
    body = {
        "sampling_session_id": sampler,
        "num_samples": 8,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": TEXT}]},
        "sampling_params": {"max_tokens": 230, "stop": []},
    }
    wait_for_blocks(server, lambda used: used == 0)
    ids = [raw.post("asample", seq_id=i, **body)["request_id"] for i in range(40)]
    wait_for_blocks(server, lambda used: used > 0)
    for request_id in ids:
        raw.post("cancel_future", request_id=request_id)
    wait_for_blocks(server, lambda used: used == 0, timeout_s=6)
    assert raw.poll(ids[-1]).json()["category"] == "user"


def wait_for_blocks(server: LiveServer, is_right: Callable[[float], bool], timeout_s: float = 20) -> None:
    """Until the KV blocks in use, as the metrics show them, are right."""
    deadline = time.monotonic() + timeout_s
    while not is_right(used := used_blocks(server)):
        assert time.monotonic() < deadline, f"{used} blocks are in use after {timeout_s} s"
        time.sleep(0.1)


def used_blocks(server: LiveServer) -> float:
    lines = [line for url in server.metrics_urls for line in httpx.get(url).text.splitlines()]
    return sum(float(line.split()[-1]) for line in lines if "worker_kv_blocks{" in line and '"used"' in line)


# 26
def test_one_request_in_flight_never_waits_for_company(subject: Subject):
    tokens, durations = list(TEXT), []
    for _ in range(10):
        started = time.monotonic()
        [turn] = sample(subject.sampler, tokens, max_tokens=2, seed=len(tokens), stop=[])
        durations.append(time.monotonic() - started)
        tokens += turn.tokens
    assert sorted(durations)[5] < 0.5
