"""The engine on a GPU: close to the CPU, and unchanged by eviction."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.training.base import AdamParams
from tests.training.workbench import engine_of, request, rl_datum, run_jobs, run_spec, same_state, sft_datum, step

pytestmark = pytest.mark.gpu

JOBS = (
    request("a", *(sft_datum(seed, 7 * seed + 3) for seed in range(6))),
    request("b", *(rl_datum(seed, 5 * seed + 4) for seed in range(6)), loss_fn="ppo"),
)
SPECS = (run_spec("a", rank=8, seed=1), run_spec("b", rank=16, seed=2, train_unembed=False))


def on_cuda(directory: Path, dtype: torch.dtype) -> BaseModel:
    return load_base_model(ModelSource("tiny", directory, torch.device("cuda"), dtype))


def test_gradients_in_fp32_are_those_of_the_cpu(model: BaseModel, tiny_dir: Path, tmp_path: Path):
    host = engine_of(model, tmp_path / "host")
    device = engine_of(on_cuda(tiny_dir, torch.float32), tmp_path / "device", micro_batch_tokens=4096)
    for engine in (host, device):
        for spec in SPECS:
            engine.open_run(spec, None)
    for expected, got in zip(run_jobs(host, *JOBS), run_jobs(device, *JOBS), strict=True):
        assert got.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-3)
        for one, other in zip(expected.outputs, got.outputs, strict=True):
            assert np.allclose(one["logprobs"], other["logprobs"], atol=1e-3)
    for spec in SPECS:
        expected, got = host.export_run(spec.run_id).gradients, device.export_run(spec.run_id).gradients
        scale = max(float(tensor.abs().max()) for tensor in expected.values())
        assert max(float((expected[name] - got[name]).abs().max()) for name in expected) < 1e-2 * scale
        assert step(device, spec.run_id)["grad_norm"] > 0


def test_a_run_in_bf16_learns_and_survives_eviction(tiny_dir: Path, tmp_path: Path):
    engine = engine_of(on_cuda(tiny_dir, torch.bfloat16), tmp_path, resident_runs=1, host_bytes=0)
    for spec in SPECS:
        engine.open_run(spec, None)
    losses: list[float] = []
    for _ in range(5):
        first, _ = run_jobs(engine, *JOBS)
        losses.append(first.metrics["loss:sum"])
        before = engine.export_run("a")
        step(engine, "b", AdamParams(learning_rate=1e-3))
        assert same_state(before, engine.export_run("a"))
        step(engine, "a", AdamParams(learning_rate=1e-2, grad_clip_norm=1.0))
    assert losses[-1] < losses[0]
