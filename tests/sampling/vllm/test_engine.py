"""The engine over vLLM servers against the built-in one: same tokens when greedy, the same log-probabilities."""

from typing import Any

import numpy as np
import pytest
import torch

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.results import SampleResult
from openrl.sampling.base import SampleJob
from openrl.sampling.engine import PagedSamplingEngine
from tests.sampling.jobs import job, sample
from tests.sampling.vllm.conftest import StartEngine, StartServer
from tests.sampling.vllm.pools import Runner, assert_close, near
from tests.vllm_model import PlainModel
from tests.vllm_server import VllmServer

LONG = list(range(20, 60))
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture
def runner(start_engine: StartEngine, vllm: VllmServer) -> Runner:
    return Runner(start_engine(vllm))


def text_of(model: BaseModel, tokens: list[int]) -> str:
    return model.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# 18, 19, 21, 23, 24, 35
@pytest.mark.parametrize("adapter", [None, "1", "2"])
@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, {}),
        ({}, {"topk_sample_logprobs": 5, "wants_prompt_logprobs": True, "topk_prompt_logprobs": 3}),
        ({}, {"wants_prompt_logprobs": True, "prompt_logprobs_last_n": 7}),
        ({"max_tokens": 1}, {"wants_prompt_logprobs": True}),
        ({"temperature": 1.0, "top_k": 1}, {}),
        ({"temperature": 1.0, "top_p": 0.0}, {"topk_sample_logprobs": 2}),
        ({"repetition_penalty": 1.5, "frequency_penalty": 0.5}, {"topk_sample_logprobs": 3}),
        ({"presence_penalty": 2.0}, {}),
        ({"stops_at_eos": True}, {}),
    ],
    ids=str,
)
def test_greedy_answers_are_the_built_in_engines(
    runner: Runner, built_in: PagedSamplingEngine, adapter: str | None, options: dict[str, Any], extra: dict[str, Any]
):
    wanted = job("r", LONG, adapter=adapter, num_samples=2, extra=extra, **{**GREEDY, **options})
    assert_close(runner.sample(wanted), sample(built_in, wanted))


# 19: of the tempered distribution, before every cut and penalty.
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.8},
        {},
        {"top_k": 3},
        {"top_p": 0.4},
        {"top_k": 600},
        {"min_p": 0.3, "repetition_penalty": 1.3, "presence_penalty": 1.0},
    ],
    ids=str,
)
def test_sampled_logprobs_are_those_of_the_model_at_the_temperature(
    runner: Runner, plain: PlainModel, built_in: PagedSamplingEngine, options: dict[str, Any]
):
    result = runner.sample(job("r", LONG, num_samples=2, extra={"topk_sample_logprobs": 4}, **options))
    temperature = options.get("temperature", 1.0)
    for sequence in result.sequences:
        tokens = sequence.tokens.tolist()
        with torch.no_grad():
            logits = plain._logits(None, LONG + tokens)[len(LONG) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, -1)
        near(sequence.logprobs, expected.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy())
        values, ids = torch.topk(expected, 4)
        assert sequence.topk_logprobs is not None
        near(sequence.topk_logprobs.logprobs, values.numpy())
        assert sequence.topk_logprobs.token_ids.tolist() == ids.tolist()
        if temperature == 1.0:
            score = job("score", LONG + tokens, max_tokens=1, extra={"wants_prompt_logprobs": True})
            scored = sample(built_in, score).prompt_logprobs
            assert scored is not None
            near(sequence.logprobs, scored[len(LONG) :])


# 23
def test_stop_strings_and_stop_tokens_end_a_sample_where_the_built_in_engine_ends_it(
    runner: Runner, built_in: PagedSamplingEngine, llama: BaseModel
):
    free = sample(built_in, job("free", LONG, **GREEDY)).sequences[0].tokens.tolist()
    whole = text_of(llama, free)
    middle = len(whole) // 2
    ways: list[dict[str, Any]] = [
        {"stop_strings": (whole[middle : middle + 2],)},
        {"stop_strings": ("never said at all", whole[middle : middle + 5])},
        {"stop_token_ids": (free[4],)},
        {"stop_token_ids": (free[-1],)},
        {"stop_token_ids": (free[6],), "stop_strings": (whole[1:3],)},
    ]
    for number, stops in enumerate(ways):
        wanted = job(f"r{number}", LONG, adapter=None, **GREEDY, **stops)
        got = runner.sample(wanted)
        assert_close(got, sample(built_in, wanted))
        assert got.sequences[0].stop_reason == "stop"


# 22
def test_seeds_reproduce_and_samples_differ_and_the_first_do_not_depend_on_how_many_follow(runner: Runner):
    def tokens(name: str, num_samples: int, seed: int | None = 5) -> list[list[int]]:
        wanted = job(name, LONG, num_samples=num_samples, seed=seed)
        return [sequence.tokens.tolist() for sequence in runner.sample(wanted).sequences]

    four = tokens("a", 4)
    assert tokens("b", 4) == four
    assert tokens("c", 2) == four[:2]
    assert len({tuple(each) for each in four}) == 4
    assert not {tuple(each) for each in tokens("d", 4, seed=6)} & {tuple(each) for each in four}
    assert tokens("e", 1, seed=None) != tokens("f", 1, seed=None)


# 23
def test_without_max_tokens_a_sample_goes_on_to_the_end_of_the_context(
    start_engine: StartEngine, vllm: VllmServer, llama: BaseModel
):
    prompt = [5] * (llama.context_length - 3)
    result = Runner(start_engine(vllm)).sample(job("r", prompt, max_tokens=None))
    assert len(result.sequences[0].tokens) == 3
    assert result.sequences[0].stop_reason == "length"


def test_what_cannot_be_exact_fails_alone_and_says_why(runner: Runner):
    fine = job("fine", LONG)
    cut = job("cut", LONG, temperature=0.5, top_p=0.9)
    targets = job("targets", LONG, extra={"target_prompt_tokens": np.zeros((len(LONG) - 1, 1), np.int64)})
    long = job("long", LONG, max_tokens=5000)
    wide = job("wide", LONG, extra={"topk_sample_logprobs": 51})
    head, missing = job("head", LONG, adapter="head"), job("missing", LONG, adapter="missing")
    results = runner.run(cut, targets, long, wide, head, missing, fine)
    messages = []
    for result in results[:-1]:
        assert isinstance(result, RequestFailed)
        assert result.category == "user"
        messages.append(str(result))
    assert isinstance(results[-1], SampleResult)
    assert "temperature is 0.5" in messages[0]
    assert "target_prompt_logprobs" in messages[1]
    assert "exceed the context" in messages[2]
    assert "greater than max allowed: 50" in messages[3]
    assert "output head" in messages[4]
    assert "no adapter 'missing'" in messages[5]


# 24, 30: two tenants, adapters and the base model side by side.
def test_tenants_get_their_own_weights_and_share_no_prefix(
    runner: Runner, built_in: PagedSamplingEngine, vllm: VllmServer
):
    jobs = [
        SampleJob(each.request_id, each.sampler, each.prompt, 1, each.options, tenant_id=tenant)
        for tenant, each in (
            ("a", job("a1", LONG, adapter="1", sampler_id="sa", **GREEDY)),
            ("b", job("b2", LONG, adapter="2", sampler_id="sb", **GREEDY)),
            ("a", job("a0", LONG, sampler_id="sa0", **GREEDY)),
            ("b", job("b0", LONG, sampler_id="sb0", **GREEDY)),
        )
    ]
    results = runner.run(*jobs)
    for wanted, result in zip(jobs, results, strict=True):
        assert isinstance(result, SampleResult)
        assert_close(result, sample(built_in, wanted))
    assert len({body["cache_salt"] for body in vllm.completions}) == 4


def test_a_server_with_log_probabilities_of_another_kind_is_not_used(
    start_engine: StartEngine, start_server: StartServer
):
    raw = start_server(logprobs_mode="raw_logprobs")
    [failed] = Runner(start_engine(raw)).run(job("r", LONG))
    assert isinstance(failed, RequestFailed)
    assert failed.category == "server"
    assert "--logprobs-mode processed_logprobs" in str(failed)


def test_a_key_is_sent_where_servers_want_one(start_engine: StartEngine, start_server: StartServer, tmp_path: Any):
    (tmp_path / "key").write_text("sesame\n")
    server = start_server(key="sesame")
    assert Runner(start_engine(server, vllm_api_key_file=tmp_path / "key")).sample(job("r", LONG)).sequences
    [failed] = Runner(start_engine(server)).run(job("r", LONG))
    assert isinstance(failed, RequestFailed)
