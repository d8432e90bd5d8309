"""What activations cost, and what happens where they do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.model.batch import Batch
from openrl.model.lora import AdapterBank, TrainingAdapters
from openrl.training.activations import ActivationPlan, LayerCosts, layer_costs
from openrl.training.base import finish_pass
from tests.model.test_lora import Sums, random_adapter
from tests.model.tiny_models import FAMILIES, load_tiny, packed, save_tiny_model
from tests.training.workbench import (
    engine_of,
    request,
    rl_datum,
    run_jobs,
    run_spec,
    same_outputs,
    same_state,
    sft_datum,
)

COSTS = LayerCosts(num_layers=4, kept=100.0, input=10.0)
CPU = torch.device("cpu")
JOBS = (
    request("a", *(sft_datum(seed, length) for seed, length in enumerate((30, 9, 62, 17)))),
    request("b", *(rl_datum(seed, length) for seed, length in enumerate((25, 40, 11))), loss_fn="ppo"),
)
SPECS = (run_spec("a", train_unembed=False), run_spec("b", rank=6, seed=2))


def kept_bytes(forward: Callable[[], Tensor], model: BaseModel) -> int:
    """Bytes that a forward pass keeps for its backward pass, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model._body.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = forward()
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_is_near_what_a_pass_keeps(family: str, dtype: torch.dtype, tmp_path: Path):
    model = load_base_model(ModelSource("tiny", save_tiny_model(family, tmp_path), CPU, dtype))
    bank = AdapterBank(model.linear_shapes, 1, model.dtype, model.device)
    bank.write(0, random_adapter(model, 4, 1))
    adapters = TrainingAdapters(bank, Sums(), model.device)
    batch = packed(model, [list(range(3, 131))] * 4, adapters, [0] * 4)
    num_rows = batch.token_ids_T.shape[0]
    estimate = layer_costs(model).of(num_rows, 0)
    kept = kept_bytes(lambda: model.hidden(batch), model)
    assert 0.6 < kept / estimate < 1.2
    again = Batch(batch.token_ids_T, batch.position_ids_T, batch.segments, batch.attention, adapters, model.num_layers)
    assert kept_bytes(lambda: model.hidden(again), model) < 0.2 * kept


def test_what_fits_is_kept_and_the_rest_is_recomputed():
    plan = ActivationPlan(COSTS, CPU, activation_bytes=4000)
    assert plan.max_rows == 10
    assert plan.recomputed_layers(10) == 0
    # 12 rows: 2 layers kept, 1 whole at a time, the inputs of 2: 12 * (200 + 100 + 20)
    assert plan.recomputed_layers(12) == 2
    assert plan.recomputed_layers(1000) == 4


def test_without_a_bound_nothing_is_recomputed_until_memory_runs_out():
    plan = ActivationPlan(COSTS, CPU, activation_bytes=0)
    assert (plan.max_rows, plan.recomputed_layers(10**6)) == (float("inf"), 0)
    assert plan.shrink(100, num_groups=3)
    plan.begin()
    assert plan.max_rows == 70
    while plan.shrink(100, num_groups=1):
        plan.begin()
    assert plan.recomputed_layers(100) == 4


@pytest.mark.parametrize("activation_bytes", [1, 10**5, 3 * 10**5])
def test_recomputed_layers_give_the_same_bits(model: BaseModel, tmp_path: Path, activation_bytes: int):
    whole = engine_of(model, tmp_path / "whole")
    tight = engine_of(model, tmp_path / "tight", activation_bytes=activation_bytes)
    assert tight._plan.recomputed_layers(62) > 0
    for engine in (whole, tight):
        for spec in SPECS:
            engine.open_run(spec, None)
    for one, other in zip(run_jobs(whole, *JOBS), run_jobs(tight, *JOBS), strict=True):
        assert same_outputs(one, other)
    for spec in SPECS:
        assert same_state(whole.export_run(spec.run_id), tight.export_run(spec.run_id))


class SmallDevice:
    """Runs out of memory where a pass keeps more than so many rows, counted over layers, forward or backward."""

    def __init__(self, model: BaseModel, rows: int, fails_backward: bool) -> None:
        self._hidden = model.hidden
        self._layers = model.num_layers
        self._rows = rows
        self._fails_backward = fails_backward
        self.num_failures = 0

    def hidden(self, batch: Batch) -> Tensor:
        hidden_TD = self._hidden(batch)
        if sum(s.length for s in batch.segments) * (self._layers - batch.recomputed_layers + 1) > self._rows:
            if not self._fails_backward:
                self._fail()
            (self._last_leaf(hidden_TD)).register_prehook(self._fail)
        return hidden_TD

    def _last_leaf(self, hidden_TD: Tensor) -> Any:
        """A place near the end of the backward pass: by then most gradients are staged."""
        node: Any = hidden_TD.grad_fn
        while True:
            following = [each for each, _ in node.next_functions if each is not None]
            if not following or "Accumulate" in type(following[0]).__name__:
                return node
            node = following[0]

    def _fail(self, _: object = None) -> None:
        self.num_failures += 1
        raise torch.OutOfMemoryError("injected")


@pytest.mark.parametrize("fails_backward", [False, True])
@pytest.mark.parametrize("rows", [130, 70])
def test_a_pass_without_memory_is_made_smaller_and_changes_no_bit(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, fails_backward: bool
):
    model = load_tiny(tiny_dir)
    engine, other = (engine_of(model, tmp_path / name, micro_batch_tokens=128) for name in ("one", "other"))
    for spec in SPECS:
        engine.open_run(spec, None)
        other.open_run(spec, None)
    expected = run_jobs(other, *JOBS)
    small = SmallDevice(model, rows, fails_backward)
    monkeypatch.setattr(model, "hidden", small.hidden)
    got = run_jobs(engine, *JOBS)
    assert small.num_failures > 0
    assert all(same_outputs(one, two) for one, two in zip(expected, got, strict=True))
    for spec in SPECS:
        assert same_state(engine.export_run(spec.run_id), other.export_run(spec.run_id))
    failures = small.num_failures
    run_jobs(engine, *JOBS)
    assert small.num_failures == failures, "what was learnt is kept"


def test_only_what_cannot_be_done_at_all_fails(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_tiny(tiny_dir)
    engine = engine_of(model, tmp_path, micro_batch_tokens=128)
    for spec in SPECS:
        engine.open_run(spec, None)
    monkeypatch.setattr(model, "hidden", SmallDevice(model, 50, fails_backward=True).hidden)
    failed, done = finish_pass(engine.forward_backward(JOBS))
    assert isinstance(failed, RequestFailed)
    assert str(failed).startswith("datum 2: 62 tokens do not fit into device memory")
    assert not isinstance(done, RequestFailed)
    assert not engine.export_run("a").gradients
    assert engine.export_run("b").gradients
