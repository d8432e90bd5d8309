"""Contracts 1-7: order, retries, results."""

import threading
import time

import httpx
import pytest
import tinker
from tinker import types

from tests.contracts.loops import backward, batch, datum, new_run, numbers, raw_datum, step_metrics, train
from tests.contracts.raw_api import PROTOBUF, RawApi, backward_body
from tests.contracts.saved_state import same_state, state_of
from tests.live_server import MODEL_NAME, LiveServer

SAMPLE = {
    "num_samples": 1,
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
    "sampling_params": {"max_tokens": 4},
}


# 1
def test_requests_take_effect_in_the_order_of_their_numbers(
    server: LiveServer, alice: tinker.ServiceClient, raw: RawApi
):
    ordered, shuffled = new_run(alice), new_run(alice)
    expected = train(ordered, 3)
    ids: dict[int, str] = {}
    for seq_id in (2, 3, 4, 6, 5, 1):  # the odd ones are gradients of the three batches, the even ones steps
        if seq_id % 2:
            ids[seq_id] = raw.submit_backward(shuffled.model_id, seq_id, batch(3, seq_id // 2))
        else:
            ids[seq_id] = raw.submit_step(shuffled.model_id, seq_id)
    assert [numbers(raw.output(ids[seq_id])) for seq_id in (1, 3, 5)] == [each.passed for each in expected]
    assert [raw.result(ids[seq_id])["metrics"] for seq_id in (2, 4, 6)] == [each.metrics for each in expected]


# 1, 8: the SDK sends the first chunk of a large call last.
def test_a_call_of_many_chunks_comes_back_in_order_and_counts_whole(alice: tinker.ServiceClient):
    data = [datum([i % 512, (i * 7) % 512, 1]) for i in range(1040)]
    run, by_hand = new_run(alice), new_run(alice)
    whole = backward(run, data)
    pieces = [backward(by_hand, data[start : start + 1024]) for start in (0, 1024)]
    assert whole.logprobs == [logprobs for piece in pieces for logprobs in piece.logprobs]
    assert whole.loss == pytest.approx(sum(piece.loss for piece in pieces), rel=1e-12)
    assert step_metrics(run) == step_metrics(by_hand)


# 2
def test_a_repeated_submission_is_the_same_request_and_runs_once(alice: tinker.ServiceClient, raw: RawApi):
    once, twice = new_run(alice), new_run(alice)
    [expected] = train(once, 1)
    backwards = {raw.submit_backward(twice.model_id, 1, batch(3)) for _ in range(2)}
    steps = {raw.submit_step(twice.model_id, 2) for _ in range(2)}
    late = raw.submit_backward(twice.model_id, 1, batch(3))
    assert backwards == {late}
    [step] = steps
    assert raw.result(step)["metrics"] == expected.metrics
    assert raw.submit_step(twice.model_id, 2) == step


# 2
def test_a_repeated_sample_is_the_same_request(raw: RawApi):
    session = raw.new_session()
    sampling = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    samplers = {raw.post("create_sampling_session", **sampling)["sampling_session_id"] for _ in range(2)}
    [sampler] = samplers
    first, second = (raw.post("asample", sampling_session_id=sampler, seq_id=10**18, **SAMPLE) for _ in range(2))
    other = raw.post("asample", sampling_session_id=sampler, seq_id=10**18 + 1, **SAMPLE)
    assert first == second
    assert other["request_id"] != first["request_id"]


# 2
def test_a_repeated_creation_is_the_same_run(raw: RawApi):
    session = raw.new_session()
    body = {"session_id": session, "model_seq_id": 0, "base_model": MODEL_NAME, "lora_config": {"rank": 4}}
    first, second = (raw.post("create_model", **body) for _ in range(2))
    assert first["request_id"] == second["request_id"]
    assert raw.result(first["request_id"])["model_id"] == f"{session}:train:0"


# 2
def test_a_repeated_unnamed_save_is_the_same_request_though_its_session_number_grew(
    alice: tinker.ServiceClient, raw: RawApi
):
    run = new_run(alice)
    save = {"model_id": run.model_id, "seq_id": 1, "kind": "snapshot"}
    first = raw.post("save_weights_for_sampler", sampling_session_seq_id=900, **save)
    second = raw.post("save_weights_for_sampler", sampling_session_seq_id=901, **save)
    assert first["request_id"] == second["request_id"]
    assert raw.result(first["request_id"])["sampling_session_id"].endswith(":sample:900")


# 3
def test_a_refused_request_does_not_hold_up_the_next(alice: tinker.ServiceClient):
    run, twin = new_run(alice), new_run(alice)
    refused = run.forward_backward([datum([1, 2, 512])], "cross_entropy")
    followers = run.forward_backward(batch(3), "cross_entropy"), run.optim_step(types.AdamParams(learning_rate=1e-2))
    with pytest.raises(tinker.BadRequestError, match="512"):
        refused.result()
    with pytest.raises(tinker.BadRequestError):
        run.optim_step(types.AdamParams(beta1=1.5)).result()
    [expected] = train(twin, 1)
    assert numbers(followers[0].result()) == expected.passed
    assert followers[1].result().metrics == expected.metrics


# 4
def test_pipelined_calls_equal_awaited_ones(server: LiveServer, alice: tinker.ServiceClient):
    pipelined, awaited = new_run(alice), new_run(alice)
    expected = train(pipelined, 4)
    assert [train(awaited, 1, first=i)[0] for i in range(4)] == expected
    assert same_state(state_of(pipelined, server.data_dir), state_of(awaited, server.data_dir))


# 5
def test_results_may_be_fetched_in_any_order_and_many_times(alice: tinker.ServiceClient, raw: RawApi):
    run = new_run(alice)
    ids = [raw.submit_backward(run.model_id, seq_id, batch(1, seq_id)) for seq_id in (1, 2, 3)]
    backwards = {request_id: raw.output(request_id) for request_id in reversed(ids)}
    for request_id in ids:
        assert numbers(raw.output(request_id)) == numbers(backwards[request_id])
    expected = [backward(new_run(alice), batch(1, seq_id)) for seq_id in (1, 2, 3)]
    assert [numbers(backwards[request_id]) for request_id in ids] == expected


# 5: the SDK polls for the later chunks of a call before it submits the first.
def test_a_poll_waits_for_a_submission_that_comes_later(alice: tinker.ServiceClient, raw: RawApi):
    run = new_run(alice)
    step = raw.submit_step(run.model_id, 2)
    answers: list[httpx.Response] = []
    poller = threading.Thread(target=lambda: answers.append(raw.poll(step)))
    poller.start()
    time.sleep(0.3)
    assert answers == []
    raw.submit_backward(run.model_id, 1, batch(3))
    poller.join(20)
    [answer] = answers
    assert answer.status_code == 200
    assert answer.json()["metrics"]["grad_norm"] > 0


# 6
def test_a_request_that_fails_leaves_its_neighbours_in_the_batch_alone(alice: tinker.ServiceClient):
    runs, twins = [new_run(alice, seed=i) for i in range(3)], [new_run(alice, seed=i) for i in (0, 2)]
    hopeless = raw_datum([1, 2], target_tokens=[2, 3], logprobs=[-1e4, -1e4], advantages=[1.0, 1.0])
    futures = [
        runs[0].forward_backward(batch(3), "cross_entropy"),
        runs[1].forward_backward([hopeless], "importance_sampling"),
        runs[2].forward_backward(batch(3), "cross_entropy"),
    ]
    with pytest.raises(tinker.RequestFailedError, match="datum 0"):
        futures[1].result()
    for run, future, twin in zip((runs[0], runs[2]), (futures[0], futures[2]), twins, strict=True):
        assert numbers(future.result()) == backward(twin, batch(3))
        assert step_metrics(run) == step_metrics(twin)


# 7
def test_a_failed_future_is_an_answer_with_error_and_category(alice: tinker.ServiceClient, raw: RawApi):
    run = new_run(alice)
    step = raw.submit_step(run.model_id, 1)
    answer = raw.poll(step)
    assert answer.status_code == 200
    assert answer.json()["category"] == "user"
    assert "without gradients" in answer.json()["error"]
    assert raw.poll(step).json() == answer.json()


# 7
def test_a_poll_without_an_answer_is_held_and_ends_with_408(alice: tinker.ServiceClient, raw: RawApi):
    run = new_run(alice)
    blocked = raw.submit_step(run.model_id, 2)
    started = time.monotonic()
    answer = raw.poll(blocked)
    assert 20 <= time.monotonic() - started <= 30
    assert answer.status_code == 408
    assert answer.json()["type"] == "try_again"


# 7: clients take an empty or compressed 400 for a proxy's, and repeat the request for minutes.
def test_a_refusal_has_a_plain_body_with_its_length(alice: tinker.ServiceClient, raw: RawApi):
    run = new_run(alice)
    content = backward_body(run.model_id, 1, [datum([1, 2, 600])])
    headers = PROTOBUF | {"Accept-Encoding": "gzip, deflate, zstd"}
    for answer in (
        raw.http.post("forward_backward", content=content, headers=headers),
        raw.http.post("optim_step", content=b"{", headers={"Accept-Encoding": "gzip"}),
        raw.http.post("asample", json={"seq_id": "x"}),
    ):
        assert answer.status_code == 400
        assert "Content-Encoding" not in answer.headers
        assert int(answer.headers["Content-Length"]) == len(answer.content) > 10
