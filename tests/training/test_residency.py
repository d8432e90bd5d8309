"""Where runs are while others work."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from openrl.errors import RequestFailed, Unavailable
from openrl.model.lora import AdapterBank
from openrl.training.residency import Residency
from openrl.training.runs import TrainingRun, create_run, export_state
from openrl.training.spill import SpillDirectory
from tests.training.workbench import run_spec, same_state

SHAPES = {"model.layers.0.self_attn.q_proj": (8, 6), "lm_head": (8, 16)}
CPU = torch.device("cpu")


def residency_of(scratch: Path, num_slots: int, host_bytes: int = 2**20) -> tuple[Residency, AdapterBank]:
    bank = AdapterBank(SHAPES, num_slots, torch.float32, CPU)
    return Residency(bank, CPU, host_bytes, SpillDirectory(scratch)), bank


def run_of(run_id: str, seed: int = 1) -> TrainingRun:
    run = create_run(run_spec(run_id, rank=2, seed=seed), SHAPES, None)
    run.exp_avg_P += seed
    run.num_steps = seed
    run.gradients_P = torch.full((run.layout.size,), float(seed))
    return run


def files_of(scratch: Path) -> list[str]:
    return sorted(file.name for file in scratch.iterdir())


def test_the_least_recently_used_run_gives_up_its_slot(tmp_path: Path):
    residency, _ = residency_of(tmp_path, num_slots=2)
    for seed, run_id in enumerate("abc"):
        residency.add(run_of(run_id, seed))
    with residency.on_device(["a", "b"]) as slots:
        pass
    with residency.on_device(["a"]) as again:
        assert again == {"a": slots["a"]}
    with residency.on_device(["c"]) as third:
        assert third["c"] == slots["b"]


def test_a_run_goes_to_disk_and_comes_back_with_the_same_bits(tmp_path: Path):
    residency, bank = residency_of(tmp_path, num_slots=1, host_bytes=0)
    before = {run_id: export_state(run_of(run_id, seed)) for seed, run_id in enumerate("abc", start=1)}
    for seed, run_id in enumerate("abc", start=1):
        residency.add(run_of(run_id, seed))
    assert len(files_of(tmp_path)) == 3
    for run_id in "abcab":
        with residency.on_device([run_id]) as slots:
            run = residency.read(run_id)
            assert same_state(export_state(run), before[run_id])
            factors = bank.factors(slots[run_id], "lm_head")
            assert factors is not None
            assert torch.equal(factors.a_RD, run.adapter().pairs["lm_head"].a_RD)
        assert len(files_of(tmp_path)) == 2
    for run_id in "abc":
        residency.remove(run_id)
    assert files_of(tmp_path) == []


def test_pinned_runs_keep_their_slots(tmp_path: Path):
    residency, _ = residency_of(tmp_path, num_slots=1)
    for run_id in "ab":
        residency.add(run_of(run_id))
    with residency.on_device(["a"]), pytest.raises(Unavailable, match="all 1 adapter slots"):  # noqa: SIM117
        with residency.on_device(["b"]):
            pass
    with residency.on_device(["b"]) as slots:
        assert slots == {"b": 0}


def test_a_removed_run_leaves_its_slot_zero(tmp_path: Path):
    residency, bank = residency_of(tmp_path, num_slots=1)
    residency.add(run_of("a"))
    with residency.on_device(["a"]):
        residency.refresh("a")
        factors = bank.factors(0, "lm_head")
    residency.remove("a")
    residency.remove("a")
    assert factors is not None
    assert not bool(factors.a_RD.any())
    assert bank.factors(0, "lm_head") is None
    with pytest.raises(RequestFailed, match="'a' is not open"):
        residency.read("a")


def test_files_of_an_earlier_process_are_deleted(tmp_path: Path):
    (tmp_path / "run-7.safetensors").write_bytes(b"old")
    SpillDirectory(tmp_path)
    assert files_of(tmp_path) == []


class FullDisk(SpillDirectory):
    """A directory on a disk without room."""

    def write(self, buffers: dict[str, torch.Tensor]) -> Path:
        raise SafetensorError("No space left on device")


def test_a_full_disk_leaves_runs_in_memory(tmp_path: Path):
    bank = AdapterBank(SHAPES, 1, torch.float32, CPU)
    residency = Residency(bank, CPU, 0, FullDisk(tmp_path))
    residency.add(run_of("a", 3))
    assert same_state(export_state(residency.read("a")), export_state(run_of("a", 3)))
