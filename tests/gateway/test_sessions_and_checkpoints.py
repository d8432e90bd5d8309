"""Sessions as they end, runs as they are unloaded, checkpoints as files."""

import io
import tarfile
from pathlib import Path

import httpx
import pytest
import tinker

from openrl.errors import NotFound
from tests.gateway.fake_scheduler import ADAPTER_CONFIG, ADAPTER_MODEL
from tests.gateway.gateway_server import MODEL, GatewayServer
from tests.gateway.raw_client import Owned, post, result, sample_body


def test_a_finished_session_takes_no_more_work(http: httpx.Client, owned: Owned, server: GatewayServer):
    beat = {"session_id": owned.session_id}
    assert post(http, "session_heartbeat", beat) == {"type": "session_heartbeat"}
    finish = {"reason": {"type": "errored"}, "detail": "out of patience"}
    assert http.post(f"sessions/{owned.session_id}/finish", json=finish).status_code == 204
    again = {"reason": {"type": "success"}, "detail": None}
    assert http.post(f"sessions/{owned.session_id}/finish", json=again).status_code == 204
    assert server.told("session_ended") == [owned.session_id]
    assert http.post("session_heartbeat", json=beat).status_code == 410
    session = server.call(server.store.get_session("alice", owned.session_id))
    assert session.end_reason == "errored: out of patience"
    model = {**beat, "model_seq_id": 3, "base_model": MODEL.name, "lora_config": {"rank": 8}}
    assert http.post("create_model", json=model).status_code == 410
    sampling = {**beat, "sampling_session_seq_id": 3, "base_model": MODEL.name}
    assert http.post("create_sampling_session", json=sampling).status_code == 410


def test_a_session_tells_what_it_made(http: httpx.Client, owned: Owned):
    session = http.get(f"sessions/{owned.session_id}").json()
    assert session["training_run_ids"] == [owned.run_id]
    assert session["sampler_ids"] == [owned.sampler_id]


def test_metadata_of_any_json_comes_back_as_text(http: httpx.Client):
    session_id = post(http, "create_session", {"user_metadata": {"n": 1, "s": "x", "l": [1]}})["session_id"]
    assert http.get(f"sessions/{session_id}").json()["user_metadata"] == {"n": "1", "s": "x", "l": "[1]"}


def test_unloading_takes_the_next_number_and_closes_the_run(http: httpx.Client, owned: Owned, server: GatewayServer):
    assert result(http, "unload_model", {"model_id": owned.run_id}) == {"model_id": owned.run_id}
    assert server.scheduler.log[-1].seq_id == 3
    server.call(server.store.close_run(owned.run_id))
    step = {"model_id": owned.run_id, "seq_id": 4, "adam_params": {}}
    assert http.post("optim_step", json=step).status_code == 410


def test_an_archive_is_fetched_by_a_link_that_needs_no_key_and_expires(
    http: httpx.Client, owned: Owned, server: GatewayServer
):
    at = f"training_runs/{owned.run_id}/checkpoints"
    answer = http.get(f"{at}/sampler_weights/s/archive")
    assert answer.status_code == 302
    assert answer.headers["expires"].endswith("GMT")
    link = answer.headers["location"]
    tar = httpx.get(link)
    assert tar.headers["content-length"] == str(len(tar.content))
    with tarfile.open(fileobj=io.BytesIO(tar.content)) as archive:
        assert archive.getnames() == ["adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"]
        files = [archive.extractfile(name) for name in archive.getnames()]
        assert [file.read() for file in files if file] == [ADAPTER_CONFIG, ADAPTER_MODEL, b""]
    assert httpx.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 404
    assert http.delete(f"{at}/sampler_weights/s").status_code == 204
    assert httpx.get(link).status_code == 404


def test_deleting_a_checkpoint_frees_its_files(http: httpx.Client, owned: Owned, server: GatewayServer):
    row = server.call(server.store.get_checkpoint("alice", owned.run_id, "weights", "w"))
    assert Path(server.blobs.open_path(row.key, "openrl.json")).exists()
    at = f"training_runs/{owned.run_id}/checkpoints/weights/w"
    assert http.delete(at).status_code == 204
    assert http.delete(at).status_code == 404
    assert http.delete(f"training_runs/{owned.run_id}/checkpoints/other/w").status_code == 400
    with pytest.raises(NotFound, match="not exist"):
        server.blobs.list_object(row.key)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_the_sdks_rest_client_lists_publishes_expires_and_deletes(rest: tinker.RestClient, owned: Owned):
    assert rest.get_server_capabilities().result().supported_models[0].model_name == MODEL.name
    runs = rest.list_training_runs().result()
    assert (runs.training_runs[0].training_run_id, runs.cursor.total_count) == (owned.run_id, 1)
    run = rest.get_training_run(owned.run_id).result()
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == owned.weights_path
    rest.publish_checkpoint_from_tinker_path(owned.sampler_path).result()
    rest.set_checkpoint_ttl_from_tinker_path(owned.sampler_path, 7200).result()
    checkpoints = rest.list_checkpoints(owned.run_id).result().checkpoints
    sampler = next(each for each in checkpoints if each.checkpoint_id == "sampler_weights/s")
    assert sampler.public
    assert sampler.expires_at is not None
    assert sampler.expires_at.tzinfo is not None
    assert rest.get_weights_info_by_tinker_path(owned.weights_path).result().lora_rank == 8
    assert rest.get_sampler(owned.sampler_id).result().base_model == MODEL.name
    assert rest.get_session(owned.session_id).result().training_run_ids == [owned.run_id]
    rest.delete_checkpoint(owned.run_id, "weights/w").result()
    assert len(rest.list_user_checkpoints().result().checkpoints) == 1


def test_a_sampler_of_a_finished_session_is_refused_not_retried(http: httpx.Client, owned: Owned):
    sampling = {"session_id": owned.session_id, "sampling_session_seq_id": 5, "base_model": MODEL.name}
    sampler_id = post(http, "create_sampling_session", sampling)["sampling_session_id"]
    http.post(f"sessions/{owned.session_id}/finish", json={"reason": {"type": "success"}})
    answer = http.post("asample", json=sample_body(sampler_id, 1))
    assert answer.status_code == 400
    assert "is finished" in answer.json()["detail"]
