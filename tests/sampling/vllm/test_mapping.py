"""Every option on its way to vLLM: mapped to what means the same, or refused."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.errors import InvalidRequest
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.sampling.vllm_client import Choice, ChosenLogprobs, CompletionReply, Scored, ServerBroke
from openrl.sampling.vllm_mapping import ModelFacts, plan_of, rescoring_of, result_of, server_seed
from openrl.sampling.vllm_rules import check
from tests.sampling.jobs import job

FACTS = ModelFacts(vocab_size=512, context_length=256, eos_token_ids=frozenset({0, 7}))
OPTIONS = st.builds(
    SamplingOptions,
    max_tokens=st.none() | st.integers(1, 100),
    temperature=st.sampled_from([0.0, 1.0]) | st.floats(0.0, 5.0),
    top_k=st.sampled_from([-1, 1, 512, 600]) | st.integers(1, 512),
    top_p=st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0),
    min_p=st.just(0.0) | st.floats(0.0, 1.0),
    repetition_penalty=st.just(1.0) | st.floats(0.1, 10.0),
    presence_penalty=st.just(0.0) | st.floats(-2.0, 2.0),
    frequency_penalty=st.just(0.0) | st.floats(-2.0, 2.0),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop_strings=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 511), max_size=3).map(tuple),
    stops_at_eos=st.booleans(),
)


def sample_job(options: SamplingOptions, num_samples: int = 1) -> SampleJob:
    sampler = SamplerSpec("s", "tiny", None)
    return SampleJob("r", sampler, np.arange(5, dtype=np.int32), num_samples, options)


@given(OPTIONS, st.integers(1, 16))
def test_what_is_not_refused_is_within_what_vllm_takes_and_means_the_same(options: SamplingOptions, num_samples: int):
    try:
        plan = plan_of(sample_job(options, num_samples), FACTS, "m", 256)
    except InvalidRequest:
        is_odd = options.temperature not in (0.0, 1.0)  # the only reason there is, for these jobs
        assert is_odd
        return
    sent = plan.request
    assert sent.n == num_samples
    assert 0.0 < sent.top_p <= 1.0
    assert sent.top_k == -1 or 1 <= sent.top_k < FACTS.vocab_size
    assert sent.temperature == 0.0 or sent.temperature >= 0.01
    assert 0 <= sent.seed + num_samples < 2**63
    assert sent.prompt == [0, 1, 2, 3, 4]
    assert sent.max_tokens == options.max_tokens or (options.max_tokens is None and 5 + sent.max_tokens >= 255)
    assert set(sent.stop_token_ids) == set(options.stop_token_ids) | ({0, 7} if options.stops_at_eos else set())
    assert sent.ignore_eos
    assert tuple(sent.stop) == options.stop_strings
    if sent.temperature != 0.0:
        assert (sent.temperature, sent.top_p, sent.min_p) == (options.temperature, options.top_p, options.min_p)
    assert (sent.repetition_penalty, sent.presence_penalty, sent.frequency_penalty) == (
        options.repetition_penalty, options.presence_penalty, options.frequency_penalty,
    )  # fmt: skip
    # vLLM's own log-probabilities are of the tempered distribution only where nothing else alters it.
    is_altered = sent.top_k != -1 or sent.top_p < 1.0 or sent.min_p > 0.0
    is_altered |= (sent.repetition_penalty, sent.presence_penalty, sent.frequency_penalty) != (1.0, 0.0, 0.0)
    assert plan.is_rescored or not is_altered


@given(OPTIONS)
def test_a_seed_and_a_sample_say_what_is_drawn_and_nothing_else_does(options: SamplingOptions):
    assert server_seed(sample_job(options, 1)) == server_seed(sample_job(options, 9))


def test_seeds_in_a_row_have_no_sample_in_common():
    starts = sorted(server_seed(job("r", [1], seed=seed)) for seed in range(2000))
    assert min(b - a for a, b in pairwise(starts)) > 1024


@pytest.mark.parametrize(
    ("options", "extra", "named"),
    [
        ({"temperature": 0.005}, {}, "temperature is 0.005"),
        ({"temperature": 0.7, "top_p": 0.9}, {}, "temperature is 0.7"),
        ({"temperature": 0.7, "top_k": 1}, {}, "temperature is 0.7"),
        ({"temperature": 1.3, "presence_penalty": 0.5}, {}, "temperature is 1.3"),
        ({}, {"prompt_alt_tokens_k": 2}, "prompt_alt_tokens_k is 2"),
        ({}, {"target_prompt_tokens": np.zeros((2, 1), np.int64)}, "target_prompt_logprobs is 'given'"),
        ({"max_tokens": 254}, {}, "context of the vLLM servers, 256 tokens"),
        ({"max_tokens": 253, "top_k": 3}, {}, "kept free for scoring"),
    ],
)
def test_what_vllm_cannot_do_is_refused_with_the_value_and_the_reason(
    options: dict[str, Any], extra: dict[str, Any], named: str
):
    wanted = job("r", [1, 2, 3], extra=extra, **options)
    with pytest.raises(InvalidRequest, match=named.replace("(", "\\(")):
        plan_of(wanted, FACTS, "m", 256)


def test_the_wire_and_the_engine_are_asked_by_the_same_rule():
    with pytest.raises(InvalidRequest, match="temperature"):
        check(SamplingOptions(temperature=0.5, min_p=0.1), 512, has_targets=False, num_alternatives=0)
    check(SamplingOptions(temperature=0.5), 512, has_targets=False, num_alternatives=0)


def choice(**fields: Any) -> Choice:
    defaults: dict[str, Any] = {
        "index": 0, "finish_reason": "length", "token_ids": [9, 8],
        "logprobs": ChosenLogprobs([-1.0, -2.0], [{"token_id:9": -1.0, "token_id:4": -0.5}, {"token_id:8": -2.0}]),
    }  # fmt: skip
    return Choice(**{**defaults, **fields})


def test_the_likeliest_tokens_come_likeliest_first_without_the_drawn_one_where_it_is_not_among_them():
    wanted = job("r", [1, 2], extra={"topk_sample_logprobs": 1})
    [sequence] = result_of(wanted, FACTS, CompletionReply([choice()]), None).sequences
    assert sequence.topk_logprobs is not None
    assert sequence.topk_logprobs.token_ids.tolist() == [[4], [8]]


def test_a_stop_token_at_the_last_place_allowed_is_a_stop():
    wanted = job("r", [1, 2], stop_token_ids=(8,))
    [sequence] = result_of(wanted, FACTS, CompletionReply([choice()]), None).sequences
    assert sequence.stop_reason == "stop"


@pytest.mark.parametrize(
    "broken",
    [
        {"token_ids": None}, {"token_ids": []}, {"index": 3}, {"logprobs": None}, {"finish_reason": "abort"},
        {"logprobs": ChosenLogprobs([-1.0], [{}])}, {"logprobs": ChosenLogprobs([None, -1.0], [])},
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_that_is_not_what_was_asked_for_is_no_result(broken: dict[str, Any]):
    with pytest.raises(ServerBroke):
        result_of(job("r", [1, 2]), FACTS, CompletionReply([choice(**broken)]), None)


def test_tokens_that_were_cut_are_scored_again_where_the_answer_stands():
    wanted = job("r", [1, 2], top_k=5)
    plan = plan_of(wanted, FACTS, "m", 256)
    reply = CompletionReply([choice()])
    again = rescoring_of(plan, wanted, reply)
    assert again.prompt == [[1, 2, 9, 8]]
    places = [None, {"2": Scored(-9.0)}, {"9": Scored(-3.0)}, {"8": Scored(-4.0)}]
    rescored = CompletionReply([choice(prompt_logprobs=places)])
    [sequence] = result_of(wanted, FACTS, reply, rescored).sequences
    assert sequence.logprobs.tolist() == [-3.0, -4.0]
