"""`tinker checkpoint …` as people run it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import safetensors.torch
import tinker

from tests.contracts.loops import new_run, train
from tests.contracts.saved_state import read_state, same_tensors
from tests.live_server import LiveServer
from tests.sdk.fake_hub import fake_hub
from tests.sdk.tinker_cli import TinkerCli


@pytest.fixture
def cli(server: LiveServer, tmp_path: Path) -> TinkerCli:
    return TinkerCli(server.url, server.key, tmp_path)


@pytest.fixture
def bob_cli(server: LiveServer, tmp_path: Path) -> TinkerCli:
    return TinkerCli(server.url, server.other_key, tmp_path)


@pytest.mark.sdk("tinker checkpoint list", "tinker checkpoint info")
def test_list_and_info_show_what_there_is(alice: tinker.ServiceClient, cli: TinkerCli, bob_cli: TinkerCli):
    run = new_run(alice)
    paths = [run.save_state(f"s{n}").result().path for n in range(3)]
    of_run = cli.json("checkpoint", "list", "--run-id", run.model_id)
    assert [each["tinker_path"] for each in of_run["checkpoints"]] == paths[::-1]
    newest = cli.json("checkpoint", "list", "--limit", "2")
    assert [each["tinker_path"] for each in newest["checkpoints"]] == paths[:0:-1]
    assert "more not shown" in cli.table("checkpoint", "list", "--limit", "2")
    everything = cli.json("checkpoint", "list", "--limit", "0")
    assert set(paths) <= {each["tinker_path"] for each in everything["checkpoints"]}
    info = cli.json("checkpoint", "info", paths[0])
    assert (info["tinker_path"], info["is_lora"], info["lora_rank"]) == (paths[0], True, 4)
    assert bob_cli.run("checkpoint", "info", paths[0]).returncode != 0


@pytest.mark.sdk("tinker checkpoint publish", "tinker checkpoint unpublish", "tinker checkpoint set-ttl")
def test_publish_and_set_ttl_change_what_info_shows(
    alice: tinker.ServiceClient, cli: TinkerCli, bob_cli: TinkerCli, rest: tinker.RestClient
):
    run = new_run(alice)
    path = run.save_state("s").result().path

    def shown() -> tuple[bool, datetime | None]:
        [listed] = rest.list_checkpoints(run.model_id).result().checkpoints
        return listed.public, listed.expires_at

    cli.table("checkpoint", "publish", path)
    assert shown() == (True, None)
    assert bob_cli.run("checkpoint", "unpublish", path).returncode != 0
    cli.table("checkpoint", "unpublish", path)
    cli.table("checkpoint", "set-ttl", path, "--ttl", "7200")
    is_public, expires_at = shown()
    assert not is_public
    assert expires_at is not None
    assert 7000 < (expires_at - datetime.now(UTC)).total_seconds() <= 7200
    refused = cli.run("checkpoint", "set-ttl", path, "--ttl", "60")
    assert refused.returncode != 0
    assert "ttl_seconds" in refused.stdout + refused.stderr
    cli.table("checkpoint", "set-ttl", path, "--remove")
    assert shown() == (False, None)


@pytest.mark.sdk("tinker checkpoint delete")
def test_delete_takes_paths_or_a_run_with_filters(alice: tinker.ServiceClient, cli: TinkerCli, rest: tinker.RestClient):
    run = new_run(alice)
    weights = [run.save_state(f"s{n}").result().path for n in range(4)]
    run.save_weights_for_sampler("s0").result()
    run.save_weights_external("s0").result()

    def left() -> list[str]:
        return sorted(each.checkpoint_id for each in rest.list_checkpoints(run.model_id).result().checkpoints)

    assert cli.json("checkpoint", "delete", "-y", *weights[:2]) == {"deleted_count": 2, "failed": []}
    assert left() == ["external_weights/s0", "sampler_weights/s0", "weights/s2", "weights/s3"]
    times = {c.tinker_path: c.time for c in rest.list_checkpoints(run.model_id).result().checkpoints}
    after = times[weights[2]].isoformat()
    of_run = ("checkpoint", "delete", "-y", "--run-id", run.model_id)
    assert cli.json(*of_run, "--type", "weights", "--after", after)["deleted_count"] == 1
    assert left() == ["external_weights/s0", "sampler_weights/s0", "weights/s2"]
    assert "No checkpoints found" in cli.table(*of_run, "--before", "2020-01-01")
    assert cli.json(*of_run, "--type", "sampler_weights", "--before", "2099-01-01")["deleted_count"] == 1
    assert cli.json(*of_run)["deleted_count"] == 2
    assert left() == []
    [failed] = cli.json("checkpoint", "delete", "-y", weights[0])["failed"]
    assert "does not exist" in failed["error"]


@pytest.mark.sdk("tinker checkpoint download")
def test_download_writes_the_adapter_and_leaves_no_export_behind(
    server: LiveServer, alice: tinker.ServiceClient, cli: TinkerCli, rest: tinker.RestClient, tmp_path: Path
):
    run = new_run(alice)
    train(run, 1)
    weights, external = run.save_state("w").result().path, run.save_weights_external("e").result().path
    saved = read_state(weights, server.data_dir).adapter
    before = rest.list_user_checkpoints(limit=1).result().cursor
    for path in (weights, external):
        got = Path(cli.json("checkpoint", "download", path, "--output", str(tmp_path))["destination"])
        assert {each.name for each in got.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        assert same_tensors(safetensors.torch.load_file(got / "adapter_model.safetensors"), saved)
    assert rest.list_user_checkpoints(limit=1).result().cursor == before
    again = cli.run("checkpoint", "download", external, "--output", str(tmp_path))
    assert "already exists" in again.stdout + again.stderr
    assert cli.json("checkpoint", "download", external, "--output", str(tmp_path), "--force")["file_size_bytes"] > 0
    sampler = run.save_weights_for_sampler("s").result().path
    refused = cli.run("checkpoint", "download", sampler, "--output", str(tmp_path))
    assert "Sampler checkpoints cannot be downloaded" in refused.stdout + refused.stderr


@pytest.mark.sdk("tinker checkpoint push-hf")
def test_push_hf_uploads_the_adapter_with_its_card(
    server: LiveServer, alice: tinker.ServiceClient, cli: TinkerCli, monkeypatch: pytest.MonkeyPatch
):
    run = new_run(alice)
    train(run, 1)
    path = run.save_weights_external("e").result().path
    with fake_hub() as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
            monkeypatch.setenv(name, value)
        pushed = cli.json("checkpoint", "push-hf", path, "--repo", "alice/x")
    assert pushed["repo_id"] == "alice/x"
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert f"tinker_path: {path}" in hub.files["README.md"].decode()
    assert "LoRA rank: 4" in hub.files["README.md"].decode()
    assert json.loads(hub.files["adapter_config.json"])["r"] == 4
