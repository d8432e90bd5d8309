"""Fused linears and their adapters, computed by the kernels' twin, against the linears one by one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.base_model import (
    ATTENTION_NAME,
    BaseModel,
    ModelSource,
    create_base_model,
    register_attention,
)
from openrl.model.grouped_lora import GroupedBank, GroupedTrainingAdapters
from openrl.model.linear_groups import MANY_ROWS, FusedLinear, LinearGroup
from openrl.model.lora import ActiveBatch, AdapterBank, TrainingAdapters
from openrl.model.lora_tiles import DECODE_TILE_ROWS, RowTiles
from openrl.model.lora_twin import TorchLora
from openrl.model.weight_files import load_causal_lm
from tests.model.test_lora import SEQUENCES, Sums, ours, random_adapter
from tests.model.tiny_models import FAMILIES, config_of, load_tiny, packed

CPU = torch.device("cpu")


def load_fused(directory: Path, family: str) -> BaseModel:
    register_attention()
    source = ModelSource("tiny", directory, CPU, torch.float32)
    causal_lm = load_causal_lm(directory, config_of(family), torch.float32, ATTENTION_NAME, CPU)
    return create_base_model(source, causal_lm, AutoTokenizer.from_pretrained(directory), fuses_linears=True)


def grouped_bank(model: BaseModel, num_slots: int = 3) -> GroupedBank:
    return GroupedBank(model.linear_shapes, model.linear_groups, num_slots, torch.float32, CPU, TorchLora())


class StagedSums(Sums):
    """Adds up what the head sends; the other gradients go to tensors of its own."""

    def __init__(self, adapters: list[AdapterWeights], device: torch.device = CPU) -> None:
        super().__init__()
        self.pairs = [
            {
                name: LoraPair(torch.zeros(p.a_RD.shape, device=device), torch.zeros(p.b_OR.shape, device=device))
                for name, p in each.pairs.items()
            }
            for each in adapters
        ]

    def addresses(self) -> list[dict[str, tuple[int, int]]]:
        return [{n: (p.a_RD.data_ptr(), p.b_OR.data_ptr()) for n, p in pairs.items()} for pairs in self.pairs]


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_linears_leave_the_logits_as_they_are(tiny_dirs: dict[str, Path], family: str):
    plain, fused = load_tiny(tiny_dirs[family]), load_fused(tiny_dirs[family], family)
    assert fused.linear_shapes == plain.linear_shapes
    assert list(fused.linear_shapes) == list(plain.linear_shapes)
    assert len(fused.linear_groups) == 3 * 4 + 1
    with torch.no_grad():
        expected = plain.logits(plain.hidden(packed(plain, SEQUENCES)))
        got = fused.logits(fused.hidden(packed(fused, SEQUENCES)))
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_fused_linears_are_those_of_the_linears_one_by_one(tiny_dirs: dict[str, Path], family: str):
    plain, fused = load_tiny(tiny_dirs[family]), load_fused(tiny_dirs[family], family)
    adapters = [random_adapter(plain, 4, 1), random_adapter(plain, 19, 2, unembed=False)]
    bank, grouped = AdapterBank(plain.linear_shapes, 3, torch.float32, CPU), grouped_bank(fused)
    for slot, adapter in enumerate(adapters):
        bank.write(slot, adapter)
        grouped.write(slot, adapter)
    slots, weights = [1, 0, 1], [torch.rand(len(s) - 1) for s in SEQUENCES]
    sums, staged = Sums(), StagedSums([adapters[slot] for slot in slots])
    expected = ours(plain, TrainingAdapters(bank, sums, CPU), slots, weights)
    got = ours(fused, GroupedTrainingAdapters(grouped, staged, CPU), slots, weights)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() < 1e-4
    for (job, name), gradients in sums.sums.items():
        pair = staged.pairs[job][name]
        mine = staged.sums[job, name] if name == "lm_head" else (pair.a_RD, pair.b_OR)
        for gradient, twin in zip(mine, gradients, strict=True):
            assert (gradient - twin).norm() <= 1e-4 * max(float(twin.norm()), 1e-3), (job, name)


def test_slots_keep_their_adapters_when_others_come_grow_and_go(tiny_dirs: dict[str, Path]):
    model = load_fused(tiny_dirs["llama"], "llama")
    bank = grouped_bank(model)
    first, second = random_adapter(model, 4, 1), random_adapter(model, 33, 2, unembed=False)
    bank.write(0, first)
    before = bank.generation
    bank.write(1, second)
    assert bank.generation > before
    for slot, adapter in ((0, first), (1, second)):
        for name, pair in adapter.pairs.items():
            factors = bank.factors(slot, name)
            assert factors is not None
            assert torch.equal(factors.a_RD, pair.a_RD)
            assert torch.equal(factors.b_OR, pair.b_OR)
    bank.refill(0, {name: LoraPair(p.a_RD + 1, p.b_OR) for name, p in first.pairs.items()})
    name = next(iter(first.pairs))
    factors = bank.factors(0, name)
    assert factors is not None
    assert torch.equal(factors.a_RD, first.pairs[name].a_RD + 1)
    bank.write(0, random_adapter(model, 4, 3))
    assert torch.equal(factors.a_RD, random_adapter(model, 4, 3).pairs[name].a_RD), "in place of one of its kind"
    bank.write(0, random_adapter(model, 2, 3))
    lead = bank.stack_of(name)
    assert lead is not None
    assert not lead.a_SND[0, 2:4].any(), "nothing is left of a larger one"
    bank.clear(0)
    assert bank.factors(0, name) is None
    stack = bank.stack_of(name)
    assert stack is not None
    assert not stack.a_SND[0].any()
    assert not stack.rank_GS[:, 0].any()


def test_tables_alone_say_which_rows_use_which_adapter(tiny_dirs: dict[str, Path]):
    model = load_fused(tiny_dirs["qwen2"], "qwen2")
    bank = grouped_bank(model)
    for slot in range(2):
        bank.write(slot, random_adapter(model, 8, slot + 1, unembed=False))
    batch = packed(model, SEQUENCES, bank, [1, -1, 0])
    tiles = RowTiles.empty(40, DECODE_TILE_ROWS, CPU)
    tiles.refill(batch.segments)
    with torch.no_grad():
        expected = model.hidden(batch)
        by_tables = packed(model, SEQUENCES, bank.with_tiles(tiles), [-1, -1, -1])
        got: Tensor = model.hidden(by_tables)
    assert (got - expected).abs().max() < 1e-5


def test_many_rows_are_multiplied_linear_by_linear_into_one_tensor():
    linears = [torch.nn.Linear(16, size, bias=False).requires_grad_(requires_grad=False) for size in (24, 8)]
    fused = FusedLinear(linears, LinearGroup(("a", "b"), 16, (24, 8)), ActiveBatch())
    x_TD = torch.randn(MANY_ROWS + 3, 16)
    expected = torch.cat([linear(x_TD) for linear in linears], 1)
    torch.testing.assert_close(fused.base(x_TD), expected)
    leaf_TD = x_TD.clone().requires_grad_()
    fused.base(leaf_TD).sum().backward()
    assert leaf_TD.grad is not None
