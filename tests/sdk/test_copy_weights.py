"""Contract 37 through the SDK: copies share files, have an owner and an end of their own, and are not trained."""

import time
from datetime import UTC, datetime, timedelta

import pytest
import tinker

from tests.contracts.loops import TEXT, batch, new_run, resume, sample, snapshot, train
from tests.contracts.raw_api import PROTOBUF, RawApi, backward_body
from tests.contracts.saved_state import same_state, state_of, stored_objects
from tests.live_server import LiveServer
from tests.sdk.test_checkpoints import disk_bytes

FREED_WITHIN_S = 30.0  # a busy machine's time for a snapshot


def run_id_of(path: str) -> str:
    return path.removeprefix("tinker://").partition("/")[0]


@pytest.mark.sdk("RestClient.copy_weights", "ServiceClient.copy_weights")
def test_a_copy_keeps_kind_name_and_weights_and_takes_no_room(
    server: LiveServer, alice: tinker.ServiceClient, rest: tinker.RestClient
):
    run = new_run(alice)
    train(run, 2)
    sources = [
        run.save_state("w", user_metadata={"a": "b"}).result().path,
        run.save_weights_for_sampler("s").result().path,
        run.save_weights_external("e").result().path,
    ]
    before = disk_bytes(server.data_dir)
    copies = [rest.copy_weights(sources[0], "archive", ttl_seconds=7200).result()]
    with tinker.ServiceClient(base_url=server.url, api_key=server.key, project_id="archive") as archive:
        copies += [archive.copy_weights(path).result() for path in sources[1:]]
    assert disk_bytes(server.data_dir) == before
    assert [path.split("/", 3)[3] for path in copies] == ["weights/w", "sampler_weights/s", "external_weights/e"]
    assert len({run_id_of(path) for path in (*copies, sources[0])}) == 4
    [listed] = rest.list_checkpoints(run_id_of(copies[0])).result().checkpoints
    assert (listed.tinker_path, listed.user_metadata, listed.public) == (copies[0], {"a": "b"}, False)
    assert listed.expires_at is not None
    assert listed.expires_at - datetime.now(UTC) > timedelta(seconds=7100)
    assert rest.list_checkpoints(run_id_of(copies[1])).result().checkpoints[0].expires_at is None
    assert rest.get_training_run(run_id_of(copies[0])).result().lora_rank == 4
    assert rest.get_weights_info_by_tinker_path(copies[2]).result().base_model == "tiny"
    for path in sources:
        rest.delete_checkpoint_from_tinker_path(path).result()
    assert disk_bytes(server.data_dir) == before
    assert same_state(state_of(resume(alice, copies[0]), server.data_dir), state_of(run, server.data_dir))
    assert sample(alice.create_sampling_client(model_path=copies[1]).result(), TEXT) == sample(snapshot(run), TEXT)
    assert set(rest.get_external_weights_urls(copies[2]).result().urls)


@pytest.mark.sdk("RestClient.copy_weights", "RestClient.delete_checkpoint_from_tinker_path")
def test_the_bytes_are_freed_when_the_last_copy_goes(
    server: LiveServer,
    alice: tinker.ServiceClient,
    bob: tinker.ServiceClient,
    rest: tinker.RestClient,
    bob_rest: tinker.RestClient,
):
    source = new_run(alice).save_state("w").result().path
    [home] = stored_objects(source, server.data_dir)
    mine = rest.copy_weights(source, "p").result()
    theirs = bob_rest.copy_weights(source, "p", weights_access_token=server.key).result()
    rest.delete_checkpoint_from_tinker_path(source).result()
    rest.delete_checkpoint_from_tinker_path(mine).result()
    assert home.exists()
    with pytest.raises(tinker.NotFoundError):
        rest.get_weights_info_by_tinker_path(theirs).result()
    assert resume(bob, theirs).model_id
    size, before = sum(f.stat().st_size for f in home.rglob("*") if f.is_file()), disk_bytes(server.data_dir)
    bob_rest.delete_checkpoint_from_tinker_path(theirs).result()
    deadline = time.monotonic() + FREED_WITHIN_S  # bob's run needs the files until it has a snapshot of its own
    while home.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not home.exists()
    assert before - disk_bytes(server.data_dir) >= size > 0


@pytest.mark.sdk("RestClient.copy_weights")
def test_a_token_lends_a_checkpoint_for_a_copy_and_nothing_else_does(
    server: LiveServer,
    alice: tinker.ServiceClient,
    rest: tinker.RestClient,
    bob_rest: tinker.RestClient,
):
    source = new_run(alice).save_state("w").result().path
    for token in (None, server.other_key):
        with pytest.raises(tinker.NotFoundError):
            bob_rest.copy_weights(source, "p", weights_access_token=token).result()
    with pytest.raises(tinker.AuthenticationError, match="weights access token"):
        bob_rest.copy_weights(source, "p", weights_access_token="tml-nobody").result()
    lent = bob_rest.copy_weights(source, "p", weights_access_token=server.key).result()
    rest.publish_checkpoint_from_tinker_path(source).result()
    public = bob_rest.copy_weights(source, "p").result()
    rest.unpublish_checkpoint_from_tinker_path(source).result()
    for path in (lent, public):
        assert bob_rest.get_weights_info_by_tinker_path(path).result().lora_rank == 4
        with pytest.raises(tinker.NotFoundError):
            rest.get_weights_info_by_tinker_path(path).result()


@pytest.mark.sdk("RestClient.copy_weights")
def test_copies_name_what_they_cannot_have(alice: tinker.ServiceClient, rest: tinker.RestClient):
    path = new_run(alice).save_state("w").result().path
    with pytest.raises(tinker.NotFoundError):
        rest.copy_weights(path.replace("weights/w", "weights/x"), "p").result()
    with pytest.raises(tinker.BadRequestError, match="tinker://"):
        rest.copy_weights("weights/w", "p").result()
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds"):
        rest.copy_weights(path, "p", ttl_seconds=10).result()


# What the SDK does not send.
def test_copies_are_repeated_into_sessions_and_never_trained(alice: tinker.ServiceClient, raw: RawApi, bob_raw: RawApi):
    path = new_run(alice).save_state("w").result().path
    body = {"source_path": path, "destination_project_id": "p"}
    key = {"X-Idempotency-Key": "one-copy-" + path}
    answers = [raw.http.post("copy_weights", json=body, headers=key).json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    again = raw.http.post("copy_weights", json=body).json()
    assert again != answers[0]
    session = raw.new_session()
    slot = {"source_path": path, "session_id": session, "model_seq_id": 0}
    in_session = raw.post("copy_weights", **slot)["tinker_path"]
    assert in_session == f"tinker://{session}:train:0/weights/w"
    assert raw.post("copy_weights", **slot)["tinker_path"] == in_session
    assert raw.http.post("copy_weights", json={"source_path": path}).status_code == 400
    assert bob_raw.http.post("copy_weights", json=slot).status_code == 404
    run_id = run_id_of(again["tinker_path"])
    load = {"model_id": run_id, "seq_id": 1, "path": path, "optimizer": True}
    step = {"model_id": run_id, "seq_id": 1, "adam_params": {}}
    refused = [raw.http.post("load_weights", json=load), raw.http.post("optim_step", json=step)]
    refused.append(raw.http.post("forward_backward", content=backward_body(run_id, 1, batch(1)), headers=PROTOBUF))
    for answer in refused:
        assert answer.status_code == 400, answer.text
        assert "cannot be trained" in answer.text
