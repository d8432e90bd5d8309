"""The engine against a plain Hugging Face model with PEFT, one datum at a time."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from openrl.model.base_model import BaseModel
from openrl.protocol.datum import Datum
from openrl.training.base import AdamParams, RunState
from tests.model.tiny_models import load_plain
from tests.training.workbench import engine_of, request, run_jobs, run_spec, sft_datum, step

RANK = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
PARAMS = AdamParams(learning_rate=3e-3, eps=1e-8, weight_decay=0.05, grad_clip_norm=1.0)


def peft_twin(directory: Path, state: RunState) -> Any:
    """A PEFT model that starts from the run's adapter."""
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0)
    twin: Any = get_peft_model(load_plain(directory), config)
    set_peft_model_state_dict(twin, state.adapter)
    return twin


def adapter_parameters(twin: Any) -> dict[str, torch.nn.Parameter]:
    """Trained parameters by the names of our states."""
    return {name.replace(".default.", "."): p for name, p in twin.named_parameters() if p.requires_grad}


def plain_loss(twin: Any, datum: Datum) -> torch.Tensor:
    logits = twin(torch.from_numpy(datum.tokens.astype(np.int64))[None]).logits[0]
    targets = torch.from_numpy(np.asarray(datum.loss_inputs["target_tokens"]))
    picked = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    return -(torch.from_numpy(np.asarray(datum.loss_inputs["weights"])) * picked).sum()


def test_three_steps_equal_plain_transformers_with_peft(model: BaseModel, tiny_dir: Path, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r", rank=RANK), None)
    twin = peft_twin(tiny_dir, engine.export_run("r"))
    parameters = adapter_parameters(twin)
    assert parameters.keys() == engine.export_run("r").adapter.keys()
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=PARAMS.learning_rate, betas=(0.9, 0.95), eps=PARAMS.eps, weight_decay=0.05
    )
    for round_number in range(3):
        data = [sft_datum(10 * round_number + seed, length) for seed, length in enumerate((9, 40, 23, 70))]
        (result,) = run_jobs(engine, request("r", *data))
        optimizer.zero_grad()
        total = 0.0
        for datum in data:
            loss = plain_loss(twin, datum)
            loss.backward()
            total += float(loss.detach())
        assert result.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)
        gradients = engine.export_run("r").gradients
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            assert float((gradients[name] - parameter.grad).abs().max()) < 1e-5 * scale
        torch.nn.utils.clip_grad_norm_(parameters.values(), PARAMS.grad_clip_norm)
        optimizer.step()
        step(engine, "r", PARAMS)
    adapter = engine.export_run("r").adapter
    for name, parameter in parameters.items():
        assert float((adapter[name] - parameter.detach()).abs().max()) < 1e-5


def num_live_tensor_bytes() -> int:
    gc.collect()
    return sum(each.numel() * each.element_size() for each in gc.get_objects() if isinstance(each, torch.Tensor))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the garbage collector touches deprecated attributes of torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_hundred_steps_hold_no_more_tensors_than_ten(model: BaseModel, tmp_path: Path):
    engine = engine_of(model, tmp_path)
    engine.open_run(run_spec("r", rank=2), None)
    job = request("r", sft_datum(1, 8))
    live: list[int] = []
    losses: list[float] = []
    for number in range(200):
        losses.append(run_jobs(engine, job)[0].metrics["loss:sum"])
        step(engine, "r", AdamParams(learning_rate=1e-3))
        if number in (9, 199):
            live.append(num_live_tensor_bytes())
    assert live[1] <= live[0]
    assert losses[-1] < losses[0] / 10
