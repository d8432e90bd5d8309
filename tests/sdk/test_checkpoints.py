"""Contracts 33, 34, 37 through the SDK: runs and checkpoints as resources."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tinker

from tests.contracts.loops import TEXT, backward, batch, new_run, resume, sample, snapshot, train
from tests.contracts.saved_state import read_state, same_state, same_tensors, state_of, stored_objects
from tests.live_server import LiveServer


def disk_bytes(data_dir: Path) -> int:
    """What all checkpoints take on disk; snapshots of other tests' runs come and go beside them."""
    objects = (data_dir / "blobs" / "objects").glob("checkpoints%2F*/**/*")
    return sum(path.stat().st_size for path in objects if path.is_file())


@pytest.mark.sdk(
    "RestClient.list_training_runs", "RestClient.get_training_run", "RestClient.get_training_run_by_tinker_path"
)
def test_runs_are_listed_in_pages_newest_first(
    alice: tinker.ServiceClient, rest: tinker.RestClient, bob_rest: tinker.RestClient
):
    runs = [new_run(alice, rank=rank) for rank in (2, 4, 8)]
    weights = runs[-1].save_state("w", user_metadata={"step": "1"}).result().path
    first = rest.list_training_runs(limit=2).result()
    second = rest.list_training_runs(limit=1, offset=2).result()
    listed = [*first.training_runs, *second.training_runs]
    assert [run.training_run_id for run in listed] == [run.model_id for run in reversed(runs)]
    assert (first.cursor.limit, first.cursor.offset, second.cursor.offset) == (2, 0, 2)
    assert first.cursor.total_count == second.cursor.total_count >= 3
    past_the_end = rest.list_training_runs(offset=first.cursor.total_count).result()
    assert past_the_end.training_runs == []
    run = rest.get_training_run(runs[-1].model_id).result()
    assert (run.base_model, run.is_lora, run.lora_rank, run.corrupted) == ("tiny", True, 8, False)
    assert run.last_checkpoint is not None
    assert (run.last_checkpoint.tinker_path, run.last_checkpoint.user_metadata) == (weights, {"step": "1"})
    assert rest.get_training_run_by_tinker_path(weights).result() == run
    with pytest.raises(tinker.NotFoundError):
        bob_rest.get_training_run(run.training_run_id).result()
    theirs = bob_rest.list_training_runs(limit=1000).result().training_runs
    assert not {run.model_id for run in runs} & {run.training_run_id for run in theirs}


@pytest.mark.sdk("RestClient.list_checkpoints", "RestClient.list_user_checkpoints", "TrainingClient.save_state")
def test_checkpoints_are_listed_with_all_they_are(
    alice: tinker.ServiceClient, rest: tinker.RestClient, bob_rest: tinker.RestClient
):
    run = new_run(alice)
    saved = [
        run.save_state("a", user_metadata={"kind": "first", "é": "ü"}).result().path,
        run.save_weights_for_sampler("a", ttl_seconds=3600).result().path,
        run.save_weights_external("a").result().path,
    ]
    of_run = rest.list_checkpoints(run.model_id).result().checkpoints
    assert [each.tinker_path for each in of_run] == saved[::-1]
    assert [each.checkpoint_type for each in of_run] == ["external", "sampler", "training"]
    assert [each.checkpoint_id for each in of_run] == ["external_weights/a", "sampler_weights/a", "weights/a"]
    assert [each.user_metadata for each in of_run] == [None, None, {"kind": "first", "é": "ü"}]
    assert all(each.size_bytes and not each.public for each in of_run)
    assert [each.expires_at is None for each in of_run] == [True, False, True]
    pages = [rest.list_user_checkpoints(limit=1, offset=n).result() for n in range(3)]
    assert [page.checkpoints[0] for page in pages] == of_run
    assert {page.cursor.total_count for page in pages if page.cursor is not None} == {
        len(rest.list_user_checkpoints(limit=1000).result().checkpoints)
    }
    with pytest.raises(tinker.NotFoundError):
        bob_rest.list_checkpoints(run.model_id).result()
    theirs = bob_rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert not set(saved) & {each.tinker_path for each in theirs}


@pytest.mark.sdk("TrainingClient.save_state", "TrainingClient.save_weights_for_sampler")
def test_of_two_saves_in_flight_under_one_name_the_first_stands(
    server: LiveServer, alice: tinker.ServiceClient, rest: tinker.RestClient
):
    run = new_run(alice)
    train(run, 1)
    futures = [run.save_state("same"), run.forward_backward(batch(2), "cross_entropy"), run.save_state("same")]
    path = futures[0].result().path  # pyright: ignore[reportAttributeAccessIssue]
    futures[1].result()
    with pytest.raises((tinker.RequestFailedError, tinker.BadRequestError), match="exists already"):
        futures[2].result()
    assert [each.tinker_path for each in rest.list_checkpoints(run.model_id).result().checkpoints] == [path]
    assert len(stored_objects(path, server.data_dir)) == 1


@pytest.mark.sdk("TrainingClient.save_state")
def test_overwriting_frees_the_old_files_and_drops_the_old_metadata(
    server: LiveServer, alice: tinker.ServiceClient, rest: tinker.RestClient
):
    run = new_run(alice)
    path = run.save_state("w", user_metadata={"old": "1"}).result().path
    train(run, 1)
    assert run.save_state("w", overwrite=True, user_metadata={"new": "2"}).result().path == path
    [listed] = rest.list_checkpoints(run.model_id).result().checkpoints
    assert listed.user_metadata == {"new": "2"}
    resumed = state_of(resume(alice, path), server.data_dir)
    assert same_state(resumed, state_of(run, server.data_dir))
    assert len(stored_objects(path, server.data_dir)) == 1


@pytest.mark.sdk("RestClient.delete_checkpoint", "RestClient.delete_checkpoint_from_tinker_path")
def test_deleting_frees_the_bytes(
    server: LiveServer, alice: tinker.ServiceClient, rest: tinker.RestClient, bob_rest: tinker.RestClient
):
    run = new_run(alice, rank=64)
    paths = [run.save_state("w").result().path, run.save_weights_for_sampler("w").result().path]
    paths.append(run.save_weights_external("w").result().path)
    sizes = [each.size_bytes or 0 for each in rest.list_checkpoints(run.model_id).result().checkpoints]
    for path in paths:
        with pytest.raises(tinker.NotFoundError):
            bob_rest.delete_checkpoint_from_tinker_path(path).result()
    before = disk_bytes(server.data_dir)
    rest.delete_checkpoint(run.model_id, "weights/w").result()
    for path in paths[1:]:
        rest.delete_checkpoint_from_tinker_path(path).result()
    assert before - disk_bytes(server.data_dir) == sum(sizes)
    assert rest.list_checkpoints(run.model_id).result().checkpoints == []
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(paths[0]).result()
    assert run.save_state("w").result().path == paths[0]


@pytest.mark.sdk(
    "RestClient.publish_checkpoint_from_tinker_path",
    "RestClient.unpublish_checkpoint_from_tinker_path",
    "RestClient.get_weights_info_by_tinker_path",
    "ServiceClient.create_sampling_client",
)
def test_public_checkpoints_can_be_read_by_other_tenants_until_they_are_not(
    alice: tinker.ServiceClient, bob: tinker.ServiceClient, rest: tinker.RestClient, bob_rest: tinker.RestClient
):
    run = new_run(alice, rank=8, train_attn=False)
    train(run, 1)
    weights, sampler = run.save_state("p").result().path, run.save_weights_for_sampler("p").result().path
    external = run.save_weights_external("p").result().path
    for path in (weights, sampler, external):
        with pytest.raises(tinker.NotFoundError):
            bob_rest.get_weights_info_by_tinker_path(path).result()
        rest.publish_checkpoint_from_tinker_path(path).result()
        rest.publish_checkpoint_from_tinker_path(path).result()  # again is fine
        info = bob_rest.get_weights_info_by_tinker_path(path).result()
        assert (info.base_model, info.is_lora, info.lora_rank, info.train_attn) == ("tiny", True, 8, False)
    assert all(each.public for each in rest.list_checkpoints(run.model_id).result().checkpoints)
    assert sample(bob.create_sampling_client(model_path=sampler).result(), TEXT) == sample(snapshot(run), TEXT)
    assert set(bob_rest.get_external_weights_urls(external).result().urls)
    for path in (weights, sampler, external):
        with pytest.raises(tinker.NotFoundError):
            bob_rest.publish_checkpoint_from_tinker_path(path).result()
        rest.unpublish_checkpoint_from_tinker_path(path).result()
        with pytest.raises(tinker.NotFoundError):
            bob_rest.get_weights_info_by_tinker_path(path).result()


@pytest.mark.sdk("RestClient.set_checkpoint_ttl_from_tinker_path")
def test_a_lifetime_is_set_changed_and_taken_away(
    alice: tinker.ServiceClient, rest: tinker.RestClient, bob_rest: tinker.RestClient
):
    run = new_run(alice)
    path = run.save_state("w", ttl_seconds=7200).result().path

    def remaining() -> timedelta | None:
        [listed] = rest.list_checkpoints(run.model_id).result().checkpoints
        return None if listed.expires_at is None else listed.expires_at - datetime.now(UTC)

    left = remaining()
    assert left is not None
    assert timedelta(seconds=7100) < left <= timedelta(seconds=7200)
    rest.set_checkpoint_ttl_from_tinker_path(path, 315_360_000).result()
    left = remaining()
    assert left is not None
    assert left > timedelta(days=3649)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert remaining() is None
    for seconds in (0, 3599, 315_360_001, -1):
        with pytest.raises(tinker.BadRequestError, match="ttl_seconds"):
            rest.set_checkpoint_ttl_from_tinker_path(path, seconds).result()
    with pytest.raises(tinker.NotFoundError):
        bob_rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds"):
        run.save_state("short", ttl_seconds=60).result()


@pytest.mark.parametrize("way", ["own", "public", "token"])
@pytest.mark.sdk(
    "ServiceClient.create_training_client_from_state",
    "ServiceClient.create_training_client_from_state_with_optimizer",
    "TrainingClient.load_state",
    "TrainingClient.load_state_with_optimizer",
)
def test_a_run_goes_on_from_a_checkpoint_of_its_own_a_public_or_a_lent_one(
    server: LiveServer, alice: tinker.ServiceClient, bob: tinker.ServiceClient, rest: tinker.RestClient, way: str
):
    run = new_run(alice)
    train(run, 2)
    path = run.save_state("s").result().path
    if way == "public":
        rest.publish_checkpoint_from_tinker_path(path).result()
    reader = alice if way == "own" else bob
    token = server.key if way == "token" else None
    expected = train(run, 2, first=2)
    resumed = reader.create_training_client_from_state_with_optimizer(path, weights_access_token=token).result()
    assert train(resumed, 2, first=2) == expected
    fresh = reader.create_training_client_from_state(path, weights_access_token=token).result()
    saved = read_state(path, server.data_dir)
    loaded = state_of(fresh, server.data_dir)
    assert same_tensors(loaded.adapter, saved.adapter)
    assert not any(value.any() for value in loaded.optimizer.values())
    old, bare = new_run(reader, seed=9), new_run(reader, seed=9)
    old.load_state_with_optimizer(path, weights_access_token=token).result()  # pyright: ignore[reportDeprecated]
    assert train(old, 2, first=2) == expected
    bare.load_state(path, weights_access_token=token).result()  # pyright: ignore[reportDeprecated]
    assert backward(bare, batch(3, 2)) == backward(fresh, batch(3, 2))


@pytest.mark.sdk("ServiceClient.create_training_client_from_state", "TrainingClient.load_state")
def test_a_token_that_cannot_read_the_checkpoint_is_refused_and_the_run_goes_on(
    server: LiveServer, alice: tinker.ServiceClient, bob: tinker.ServiceClient
):
    path = new_run(alice).save_state("s").result().path
    unknown = f"tml-{uuid.uuid4().hex}"
    for token, error in ((None, tinker.NotFoundError), (server.other_key, tinker.NotFoundError)):
        with pytest.raises(error):
            bob.create_training_client_from_state(path, weights_access_token=token).result()
    with pytest.raises(tinker.AuthenticationError, match="weights access token"):
        bob.create_training_client_from_state(path, weights_access_token=unknown).result()
    run = new_run(bob)
    with pytest.raises(tinker.AuthenticationError, match="weights access token"):
        run.load_state(path, weights_access_token=unknown).result()  # pyright: ignore[reportDeprecated]
    assert train(run, 1)[0].metrics["num_steps"] == 1.0
