import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyrage
import pytest

from openrl.errors import Unavailable
from openrl.rpc.messages import Command, ExecuteDone, Outcome, Report, RunSnapshotted, SnapshotRun
from tests.worker.rig import RUN_ID, Rig, execute, open_run, run_spec


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.blobs.close()


def outcomes_of(reports: Sequence[Report]) -> dict[str, Outcome]:
    return {each.request_id: each for report in reports if isinstance(report, ExecuteDone) for each in report.outcomes}


def save(rig: Rig, kind: str, seq_id: int = 3, **fields: object) -> Command:
    payload: dict[str, object] = {"model_id": RUN_ID, "seq_id": seq_id, **fields}
    return execute(rig.item(kind, payload, seq_id), work_id=seq_id)


def trained(rig: Rig) -> list[Command]:
    return [open_run(), execute(rig.forward_backward(1)), execute(rig.optim_step(2))]


def test_a_training_checkpoint_is_whole_and_durable_before_the_reply(rig: Rig):
    command = save(rig, "save_weights", path="final", ttl_seconds=3600, user_metadata={"step": "7"})
    outcome = outcomes_of(rig.run(*trained(rig), command))["save_weights-3"]
    assert rig.result(outcome.result_ref)["path"] == f"tinker://{RUN_ID}/weights/final"
    saved = outcome.checkpoint
    assert saved is not None
    assert (saved.kind, saved.name, saved.expires_at) == ("weights", "final", 4600.0)
    assert saved.user_metadata == {"step": "7"}
    sizes = rig.blobs.list_object(saved.key)
    assert set(sizes) == {
        "adapter_config.json", "adapter_model.safetensors", "openrl.json", "optimizer.safetensors",
    }  # fmt: skip
    assert sum(sizes.values()) == saved.size_bytes


def test_a_named_sampler_checkpoint_holds_no_optimizer(rig: Rig):
    outcome = outcomes_of(rig.run(*trained(rig), save(rig, "save_weights_for_sampler", path="v1")))
    saved = outcome["save_weights_for_sampler-3"]
    assert rig.result(saved.result_ref)["path"] == f"tinker://{RUN_ID}/sampler_weights/v1"
    assert saved.checkpoint is not None
    assert "optimizer.safetensors" not in rig.blobs.list_object(saved.checkpoint.key)


def test_an_unnamed_sampler_save_names_the_sampling_session(rig: Rig):
    command = save(rig, "save_weights_for_sampler", sampling_session_seq_id=4)
    outcome = outcomes_of(rig.run(*trained(rig), command))["save_weights_for_sampler-3"]
    assert rig.result(outcome.result_ref)["sampling_session_id"] == "s1:sample:4"
    assert outcome.checkpoint is not None
    assert (outcome.checkpoint.sampler_id, outcome.checkpoint.sampling_session_seq_id) == ("s1:sample:4", 4)


def test_a_checkpoint_is_loaded_into_another_run(rig: Rig):
    other = "s1:train:1"
    key = f"checkpoints/{RUN_ID}/weights/final/save_weights-3-first"
    load = rig.item(
        "load_weights", {"key": key, "optimizer": True, "path": "tinker://x/weights/final"}, 0, run_id=other
    )
    rig.run(*trained(rig), save(rig, "save_weights", path="final"))
    next_worker = rig.restarted()
    next_worker.run(open_run(other), execute(load))
    assert next_worker.training.weights[other] == rig.training.weights[RUN_ID] == -1.0


def test_a_load_that_does_not_fit_fails_with_both_values(rig: Rig):
    rig.run(*trained(rig), save(rig, "save_weights_for_sampler", path="v1"))
    key = f"checkpoints/{RUN_ID}/sampler_weights/v1/save_weights_for_sampler-3-first"
    with_optimizer = rig.item("load_weights", {"key": key, "optimizer": True, "path": "p"}, 5, request_id="opt")
    other_rank = rig.item(
        "load_weights", {"key": key, "optimizer": False, "path": "p"}, 5, request_id="rank", run_id="r8"
    )
    commands = [open_run(), open_run("r8", rank=8), execute(with_optimizer), execute(other_rank)]
    outcomes = outcomes_of(rig.restarted().run(*commands))
    assert "no optimizer state" in outcomes["opt"].error
    assert outcomes["rank"].error == "the checkpoint has rank 4; the run has rank 8"
    assert outcomes["rank"].category == "user"


def test_the_run_spec_of_the_rig_is_what_the_manifest_says(rig: Rig):
    outcome = outcomes_of(rig.run(*trained(rig), save(rig, "save_weights", path="a")))["save_weights-3"]
    assert outcome.checkpoint is not None
    manifest = rig.blobs.get_object(outcome.checkpoint.key)["openrl.json"]
    assert b'"rank": 4' in manifest
    assert run_spec().base_model.encode() in manifest


def test_files_for_other_tools_name_the_model_as_clients_know_it(rig: Rig):
    outcome = outcomes_of(rig.run(*trained(rig), save(rig, "save_weights_external", path="x", ttl_seconds=3600)))
    done = outcome["save_weights_external-3"]
    assert done.checkpoint is not None
    assert (done.checkpoint.kind, done.checkpoint.name, done.checkpoint.expires_at) == ("external_weights", "x", 4600.0)
    assert rig.result(done.result_ref)["path"] == f"tinker://{RUN_ID}/external_weights/x"
    assert rig.result(done.result_ref)["size_bytes"] == done.checkpoint.size_bytes
    files = rig.blobs.get_object(done.checkpoint.key)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "openrl.json"}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == run_spec().base_model


@pytest.mark.parametrize("kind", ["save_weights", "save_weights_for_sampler"])
def test_checkpoints_that_can_be_downloaded_do_not_tell_where_the_model_lies(rig: Rig, kind: str):
    done = outcomes_of(rig.run(*trained(rig), save(rig, kind, path="a")))[f"{kind}-3"]
    assert done.checkpoint is not None
    config = json.loads(rig.blobs.get_object(done.checkpoint.key)["adapter_config.json"])
    assert config["base_model_name_or_path"] == run_spec().base_model


def test_encrypted_files_open_for_their_recipients_and_equal_the_plain_ones(rig: Rig):
    reader = pyrage.x25519.Identity.generate()
    plain = save(rig, "save_weights_external", path="plain")
    hidden = save(rig, "save_weights_external", 4, path="hidden", age_encryption_recipients=[str(reader.to_public())])
    outcomes = outcomes_of(rig.run(*trained(rig), plain, hidden))
    expected, got = (
        rig.blobs.get_object(outcome.checkpoint.key)
        for outcome in (outcomes["save_weights_external-3"], outcomes["save_weights_external-4"])
        if outcome.checkpoint is not None
    )
    assert set(got) == {"adapter_config.json.age", "adapter_model.safetensors.age", "openrl.json"}
    assert {n.removesuffix(".age"): pyrage.decrypt(c, [reader]) for n, c in got.items() if n.endswith(".age")} == {
        name: content for name, content in expected.items() if name != "openrl.json"
    }


@pytest.mark.parametrize(("overwrite", "may_replace"), [(True, True), (False, False)])
def test_only_a_save_that_says_so_may_replace_another(rig: Rig, overwrite: bool, may_replace: bool):
    outcomes = outcomes_of(rig.run(*trained(rig), save(rig, "save_weights", path="a", overwrite=overwrite)))
    saved = outcomes["save_weights-3"].checkpoint
    assert saved is not None
    assert saved.may_replace == may_replace


def test_a_worker_that_was_given_up_writes_over_nothing_that_another_has_written_since(rig: Rig):
    again = rig.restarted()

    def work(each: Rig, rate: float) -> list[str]:
        reports = each.run(
            open_run(),
            execute(each.forward_backward(0), work_id=1),
            execute(each.optim_step(1, rate=rate), work_id=2),
            save(each, "save_weights", 2, path="final"),
            SnapshotRun(RUN_ID),
        )
        saved = [report.outcomes[0].checkpoint for report in reports if isinstance(report, ExecuteDone)]
        keys = [each.key for each in saved if each is not None]
        return keys + [report.key for report in reports if isinstance(report, RunSnapshotted)]

    acknowledged = work(rig, rate=0.5)
    before = {key: rig.blobs.get_object(key) for key in acknowledged}
    late = work(again, rate=0.25)
    assert len(late) == len(acknowledged) == 2
    assert {key: rig.blobs.get_object(key) for key in acknowledged} == before
    assert set(late).isdisjoint(acknowledged)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors", "openrl.json"])
@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"[" * 5000, None])
def test_a_checkpoint_with_a_damaged_file_fails_its_load_alone(rig: Rig, file: str, damage: bytes | None):
    command = save(rig, "save_weights", path="final")
    saved = outcomes_of(rig.run(*trained(rig), command))["save_weights-3"].checkpoint
    assert saved is not None
    files = {name: content for name, content in rig.blobs.get_object(saved.key).items() if name != file}
    rig.blobs.put_object(saved.key, files if damage is None else {**files, file: damage})
    load = rig.item("load_weights", {"key": saved.key, "optimizer": True, "path": "tinker://x/weights/final"}, 4)
    outcome = outcomes_of(rig.run(execute(load, work_id=4), execute(rig.forward_backward(5), work_id=5)))
    assert outcome["load_weights-4"].error
    assert "/" not in outcome["load_weights-4"].error
    assert outcome["forward_backward-5"].error == ""


@pytest.mark.parametrize("num_failures", [5, 100])
def test_a_save_waits_for_room_on_the_disk_for_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch, num_failures: int):
    put, failures = rig.blobs.put_object, iter(range(num_failures))

    def put_object(key: str, files: dict[str, bytes]) -> int:
        if next(failures, None) is not None:
            raise Unavailable("cannot write: no space left on device")
        return put(key, files)

    monkeypatch.setattr(rig.blobs, "put_object", put_object)
    outcome = outcomes_of(rig.run(*trained(rig), save(rig, "save_weights", path="final")))["save_weights-3"]
    expected = ("", "unknown") if num_failures == 5 else ("cannot write: no space left on device", "server")
    assert (outcome.error, outcome.category) == expected
    assert (outcome.checkpoint is None) == (num_failures == 100)
