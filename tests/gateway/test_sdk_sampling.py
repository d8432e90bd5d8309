"""Sampling through the real SDK over HTTP."""

import pytest
import tinker
from tinker import types

from tests.gateway.gateway_server import MODEL, GatewayServer

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
PROMPT = types.ModelInput.from_ints([5, 6, 7])


def test_the_base_model_answers_with_as_many_samples_as_asked(alice: tinker.ServiceClient, server: GatewayServer):
    client = alice.create_sampling_client(base_model=MODEL.name).result()
    result = client.sample(PROMPT, 3, types.SamplingParams(max_tokens=4, seed=2**64 - 1, stop=[])).result()
    assert [sequence.tokens for sequence in result.sequences] == [[5, 5, 5, 5]] * 3
    assert result.sequences[0].logprobs == [-0.5] * 4
    assert len({sequence.sequence_id for sequence in result.sequences}) == 3
    row = server.scheduler.log[-1]
    assert (row.num_tokens, row.num_sequences, row.base_model) == (15, 3, MODEL.name)


def test_prompt_logprobs_have_one_entry_per_token_the_first_absent(alice: tinker.ServiceClient):
    client = alice.create_sampling_client(base_model=MODEL.name).result()
    assert client.compute_logprobs(PROMPT).result() == [None, -0.25, -0.25]


def test_trained_weights_are_sampled_unnamed_and_by_path(alice: tinker.ServiceClient, server: GatewayServer):
    trainer = alice.create_lora_training_client(base_model=MODEL.name, rank=8).result()
    unnamed = trainer.save_weights_and_get_sampling_client().result()
    unnamed.sample(PROMPT, 1, types.SamplingParams(max_tokens=1)).result()
    assert server.scheduler.log[-1].sampler_id.endswith(":sample:0")
    path = trainer.save_weights_for_sampler("final").result().path
    named = alice.create_sampling_client(model_path=path).result()
    assert named.get_base_model() == MODEL.name
    named.sample(PROMPT, 1, types.SamplingParams(max_tokens=1)).result()
    sampler = server.call(server.store.get_sampler("alice", server.scheduler.log[-1].sampler_id))
    assert (sampler.model_path, sampler.base_model) == (path, MODEL.name)
    assert sampler.adapter_key is not None


def test_inflight_saves_are_snapshots(alice: tinker.ServiceClient):
    trainer = alice.create_lora_training_client(base_model=MODEL.name, rank=8).result()
    client = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    assert len(client.sample(PROMPT, 1, types.SamplingParams(max_tokens=2)).result().sequences) == 1


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(alice: tinker.ServiceClient):
    client = alice.create_sampling_client(base_model=MODEL.name).result()
    with pytest.raises(tinker.BadRequestError, match=r"prompt of 3 tokens plus max_tokens 126 is over .* 128"):
        client.sample(PROMPT, 1, types.SamplingParams(max_tokens=126)).result()


def test_many_samples_at_once_all_come_back(alice: tinker.ServiceClient):
    client = alice.create_sampling_client(base_model=MODEL.name).result()
    prompts = [types.ModelInput.from_ints([i]) for i in range(200)]
    futures = [client.sample(prompt, 1, types.SamplingParams(max_tokens=1)) for prompt in prompts]
    assert [future.result().sequences[0].tokens for future in futures] == [[i] for i in range(200)]


def test_a_poll_that_ends_early_is_repeated_until_the_result_is_there(
    alice: tinker.ServiceClient, server: GatewayServer
):
    server.scheduler.fails = lambda row: None
    client = alice.create_sampling_client(base_model=MODEL.name).result()
    server.scheduler.is_holding.set()
    future = client.sample(PROMPT, 1, types.SamplingParams(max_tokens=1))
    with pytest.raises(TimeoutError):
        future.result(timeout=1.5)
    row = next(row for row in server.store._requests.values() if row.kind == "sample")
    server.call(server.store.finish([server.call(server.scheduler._finish(row))]))
    assert future.result(timeout=5).sequences[0].tokens == [5]
