"""Contracts 27-30: neighbours on the same device, and the wall between tenants."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tinker
from tinker import types

from tests.contracts.loops import (
    TEXT,
    Trained,
    backward,
    batch,
    connect,
    new_run,
    prompt_of,
    raw_datum,
    resume,
    sample,
    snapshot,
    step_metrics,
    train,
)
from tests.contracts.raw_api import PROTOBUF, RawApi, backward_body
from tests.contracts.saved_state import same_state, state_of
from tests.live_server import MODEL_NAME, LiveServer

WILD = types.AdamParams(learning_rate=0.5, weight_decay=0.9, grad_clip_norm=1e-3)
HOPELESS = raw_datum([1, 2], target_tokens=[2, 3], logprobs=[-1e4, -1e4], advantages=[1.0, 1.0])


def policy_batch() -> list[types.Datum]:
    rng = np.random.default_rng(2)
    inputs = {"target_tokens": TEXT[1:], "logprobs": [-6.0] * 15, "advantages": rng.normal(size=15).tolist()}
    return [raw_datum(TEXT[:-1], **inputs)]


class Crowd:
    """Another tenant's runs of all kinds, all at work at once."""

    def __init__(self, service: tinker.ServiceClient) -> None:
        self._runs = [new_run(service, rank, seed=rank) for rank in (1, 8, 16)]
        self._sampler = service.create_sampling_client(base_model=MODEL_NAME).result()
        self._futures: list[Any] = []

    def work(self) -> None:
        """Submit work and do not wait for it."""
        for run, loss_fn in zip(self._runs, ("importance_sampling", "ppo", "dro"), strict=True):
            self._futures.append(run.forward_backward(policy_batch(), loss_fn))
            self._futures.append(run.optim_step(WILD))
        self._futures.append(self._sampler.sample(prompt_of(TEXT), 3, types.SamplingParams(max_tokens=12)))
        self._failing = self._runs[0].forward_backward([HOPELESS], "importance_sampling")

    def finish(self) -> None:
        for future in self._futures:
            future.result()
        with pytest.raises(tinker.RequestFailedError):
            self._failing.result()


# 27
def test_a_crowd_at_work_changes_no_bit_of_a_run(
    server: LiveServer, alice: tinker.ServiceClient, bob: tinker.ServiceClient, bob_raw: RawApi
):
    alone, beside = new_run(alice), new_run(alice)
    expected = train(alone, 5)
    crowd, doomed = Crowd(bob), new_run(bob)
    got: list[Trained] = []
    for i in range(5):
        crowd.work()
        backward(doomed, batch(2))
        got += train(beside, 1, first=i)
        if i == 2:
            bob_raw.result(bob_raw.post("unload_model", model_id=doomed.model_id)["request_id"])
            doomed = new_run(bob)
    crowd.finish()
    assert got == expected
    assert same_state(state_of(beside, server.data_dir), state_of(alone, server.data_dir))
    assert sample(snapshot(beside), TEXT, 2) == sample(snapshot(alone), TEXT, 2)


# 28
def test_a_run_after_an_unloaded_one_starts_clean(server: LiveServer, alice: tinker.ServiceClient, raw: RawApi):
    old = new_run(alice)
    fresh = state_of(old, server.data_dir)
    first = train(old, 3)
    backward(old, batch(3))
    raw.result(raw.post("unload_model", model_id=old.model_id)["request_id"])
    new = new_run(alice)
    assert same_state(state_of(new, server.data_dir), fresh)
    with pytest.raises(tinker.RequestFailedError, match="without gradients"):
        new.optim_step(types.AdamParams()).result()
    assert train(new, 3) == first


# 29
def test_ranks_and_losses_share_a_batch_and_keep_their_numbers(alice: tinker.ServiceClient):
    kinds: list[tuple[int, Any, list[types.Datum]]] = [
        (2, "cross_entropy", batch(3)),
        (8, "importance_sampling", policy_batch()),
        (16, "ppo", policy_batch()),
        (32, "cispo", policy_batch()),
    ]
    alone = [new_run(alice, rank) for rank, _, _ in kinds]
    expected = [backward(run, data, loss_fn) for run, (_, loss_fn, data) in zip(alone, kinds, strict=True)]
    together = [new_run(alice, rank) for rank, _, _ in kinds]
    futures = [run.forward_backward(data, loss_fn) for run, (_, loss_fn, data) in zip(together, kinds, strict=True)]
    for future, passed in zip(futures, expected, strict=True):
        result = future.result()
        assert [list(each["logprobs"].data) for each in result.loss_fn_outputs] == passed.logprobs
        assert result.metrics["loss:sum"] == passed.loss
    for run, twin in zip(together, alone, strict=True):
        assert step_metrics(run) == step_metrics(twin)


@pytest.fixture(scope="module")
def owned(server: LiveServer) -> Any:
    """One of everything that belongs to alice."""
    with connect(server.url, server.key) as service:
        run = new_run(service)
        train(run, 1)
        yield Owned(service, run)


class Owned:
    def __init__(self, service: tinker.ServiceClient, run: tinker.TrainingClient) -> None:
        self.run = run
        self.run_id = run.model_id
        self.session_id = run.model_id.partition(":train:")[0]
        self.weights = run.save_state("mine").result().path
        self.sampler_weights = run.save_weights_for_sampler("mine").result().path
        self.sampler = service.create_sampling_client(model_path=self.sampler_weights).result()
        self.unnamed = run.save_weights_and_get_sampling_client().result()


# 30: what the SDK can ask for.
def test_another_tenants_things_are_not_found_by_the_sdk(
    bob: tinker.ServiceClient, bob_rest: tinker.RestClient, owned: Owned
):
    rest = bob_rest
    questions: list[Callable[[], Any]] = [
        lambda: resume(bob, owned.weights),
        lambda: resume(bob, owned.weights, with_optimizer=False),
        lambda: bob.create_sampling_client(model_path=owned.sampler_weights).result(),
        lambda: rest.get_training_run(owned.run_id).result(),
        lambda: rest.get_training_run_by_tinker_path(owned.weights).result(),
        lambda: rest.list_checkpoints(owned.run_id).result(),
        lambda: rest.get_weights_info_by_tinker_path(owned.weights).result(),
        lambda: rest.delete_checkpoint(owned.run_id, "weights/mine").result(),
        lambda: rest.delete_checkpoint_from_tinker_path(owned.sampler_weights).result(),
        lambda: rest.publish_checkpoint_from_tinker_path(owned.weights).result(),
        lambda: rest.unpublish_checkpoint_from_tinker_path(owned.weights).result(),
        lambda: rest.set_checkpoint_ttl_from_tinker_path(owned.weights, 3600).result(),
        lambda: rest.get_session(owned.session_id).result(),
        lambda: rest.get_sampler(f"{owned.session_id}:sample:0").result(),
    ]
    for question in questions:
        with pytest.raises(tinker.NotFoundError):
            question()
    assert owned.session_id not in rest.list_sessions(limit=1000).result().sessions
    runs = rest.list_training_runs(limit=1000).result().training_runs
    assert owned.run_id not in [run.training_run_id for run in runs]
    paths = [each.tinker_path for each in rest.list_user_checkpoints(limit=1000).result().checkpoints]
    assert owned.weights not in paths


# 30: what only somebody who guesses ids would ask for.
def test_another_tenants_ids_are_not_found_in_any_call(raw: RawApi, bob_raw: RawApi, owned: Owned):
    sampling = {"num_samples": 1, "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]}}
    numbered = {"model_id": owned.run_id, "seq_id": 99}
    session = {"session_id": owned.session_id}
    sampler = f"{owned.session_id}:sample:0"
    request = raw.post("unload_model", model_id=new_raw_run(raw))["request_id"]
    sample_id = raw.post("asample", sampling_session_id=sampler, seq_id=77, sampling_params={}, **sampling)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_info", {"model_id": owned.run_id}),
        ("unload_model", {"model_id": owned.run_id}),
        ("optim_step", {**numbered, "adam_params": {"learning_rate": 1e-3}}),
        ("save_weights", {**numbered, "path": "stolen"}),
        ("save_weights_for_sampler", {**numbered, "path": "stolen", "kind": "snapshot"}),
        ("save_weights_external", {**numbered, "path": "stolen"}),
        ("copy_weights", {"source_path": owned.weights, "destination_project_id": "p"}),
        ("copy_weights", {"source_path": owned.weights, **session, "model_seq_id": 53}),
        ("load_weights", {**numbered, "path": owned.weights, "optimizer": True}),
        ("create_model", {**session, "model_seq_id": 50, "base_model": MODEL_NAME, "lora_config": {"rank": 4}}),
        ("load_weights", {**session, "model_seq_id": 51, "path": owned.weights, "optimizer": True}),
        ("create_sampling_session", {**session, "sampling_session_seq_id": 52, "base_model": MODEL_NAME}),
        ("asample", {"sampling_session_id": sampler, "seq_id": 1, "sampling_params": {}, **sampling}),
        ("retrieve_future", {"request_id": request}),
        ("retrieve_future", {"request_id": sample_id["request_id"]}),
        ("cancel_future", {"request_id": sample_id["request_id"]}),
        (f"sessions/{owned.session_id}/finish", {"reason": {"type": "success"}, "detail": None}),
        ("weights_info", {"tinker_path": owned.sampler_weights}),
    ]
    for path, body in calls:
        answer = bob_raw.http.post(path, json=body)
        assert answer.status_code == 404, (path, answer.status_code, answer.text)
    content = backward_body(owned.run_id, 99, batch(1))
    assert bob_raw.http.post("forward_backward", content=content, headers=PROTOBUF).status_code == 404
    archive = f"training_runs/{owned.run_id}/checkpoints/weights/mine/archive"
    assert bob_raw.http.get(archive).status_code == 404
    assert raw.http.get(archive).status_code == 302
    heartbeat = bob_raw.http.post("session_heartbeat", json=session)
    assert heartbeat.status_code in (404, 410)
    assert train(owned.run, 1)[0].metrics["num_steps"] == 2.0


def new_raw_run(raw: RawApi) -> str:
    body = {"session_id": raw.new_session(), "model_seq_id": 0, "base_model": MODEL_NAME, "lora_config": {"rank": 4}}
    return raw.result(raw.post("create_model", **body)["request_id"])["model_id"]


# 30
def test_paths_lead_nowhere_but_to_ones_own_checkpoints(
    alice: tinker.ServiceClient, bob: tinker.ServiceClient, bob_raw: RawApi, owned: Owned
):
    mine = new_run(bob)
    mine.save_state("a").result()
    steps = [f"{'../' * depth}{owned.run_id}/weights/mine" for depth in (1, 2, 3)]
    tricks = [f"tinker://{mine.model_id}/weights/{step}" for step in steps]
    tricks += [f"tinker://{mine.model_id}/../{owned.run_id}/weights/mine", f"tinker://{mine.model_id}/weights/.."]
    tricks += ["tinker:///etc/passwd", "file:///etc/passwd", f"tinker://{owned.run_id}/weights/mine\x00"]
    for path in tricks:
        for call, body in (("weights_info", {"tinker_path": path}), ("load_weights", load_body(bob_raw, path))):
            answer = bob_raw.http.post(call, json=body)
            assert answer.status_code in (400, 404), (path, answer.text)
    prefix = f"training_runs/{mine.model_id}/checkpoints/weights"
    for name in ("..%2f..%2fmine", "%2e%2e", "a%00", f"..%2f{owned.run_id}%2fweights%2fmine"):
        assert bob_raw.http.get(f"{prefix}/{name}/archive").status_code in (400, 404)
        assert bob_raw.http.delete(f"{prefix}/{name}").status_code in (400, 404)
    for name in ("../up", "a/b", "..", "", "a\x00b"):
        with pytest.raises(tinker.BadRequestError):
            mine.save_state(name).result()
    assert resume(alice, owned.weights).model_id


def load_body(raw: RawApi, path: str) -> dict[str, Any]:
    return {"session_id": raw.new_session(), "model_seq_id": 0, "path": path, "optimizer": True}


# 30
def test_a_published_checkpoint_can_be_read_by_all_and_written_by_its_owner_alone(
    server: LiveServer,
    alice: tinker.ServiceClient,
    bob: tinker.ServiceClient,
    rest: tinker.RestClient,
    bob_rest: tinker.RestClient,
):
    run = new_run(alice)
    train(run, 2)
    weights, sampler = run.save_state("p").result().path, run.save_weights_for_sampler("p").result().path
    mine, theirs = rest, bob_rest
    for path in (weights, sampler):
        mine.publish_checkpoint_from_tinker_path(path).result()
    assert theirs.get_weights_info_by_tinker_path(weights).result().lora_rank == 4
    copy = resume(bob, weights)
    assert same_state(state_of(copy, server.data_dir), state_of(run, server.data_dir))
    read = bob.create_sampling_client(model_path=sampler).result()
    assert sample(read, TEXT) == sample(snapshot(run), TEXT)
    for write in (
        lambda: theirs.delete_checkpoint_from_tinker_path(weights).result(),
        lambda: theirs.unpublish_checkpoint_from_tinker_path(weights).result(),
        lambda: theirs.set_checkpoint_ttl_from_tinker_path(weights, 3600).result(),
    ):
        with pytest.raises(tinker.NotFoundError):
            write()
    mine.unpublish_checkpoint_from_tinker_path(weights).result()
    with pytest.raises(tinker.NotFoundError):
        resume(bob, weights)
