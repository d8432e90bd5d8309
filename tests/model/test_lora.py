"""Multi-adapter linears against PEFT, and their gradients against autograd."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from openrl.model.adapter import AdapterWeights, LoraPair, initial_adapter
from openrl.model.base_model import BaseModel
from openrl.model.head import target_logprobs
from openrl.model.lora import AdapterBank, TrainingAdapters
from openrl.protocol.runs import RunSpec
from tests.model.tiny_models import FAMILIES, load_plain, load_tiny, packed

# Our trained unembedding is never merged into a tied embedding, which is what PEFT warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")

SEQUENCES = [[5, 9, 14, 200, 3], list(range(10, 160)), [7, 8, 9] * 11]


class Sums:
    """Adds gradients up by job and linear."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def add(self, job: int, name: str, da_RD: Tensor, db_OR: Tensor) -> None:
        a, b = self.sums.get((job, name), (torch.zeros_like(da_RD), torch.zeros_like(db_OR)))
        self.sums[job, name] = (a + da_RD, b + db_OR)


def spec(rank: int, seed: int, unembed: bool = True) -> RunSpec:
    return RunSpec(f"run{seed}", "tenant", "tiny", rank, seed, True, True, unembed)


def random_adapter(model: BaseModel, rank: int, seed: int, unembed: bool = True) -> AdapterWeights:
    fresh = initial_adapter(model.linear_shapes, spec(rank, seed, unembed))
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(pair.a_RD, torch.randn(pair.b_OR.shape, generator=generator) * 0.02)
        for name, pair in fresh.pairs.items()
    }
    return AdapterWeights(rank, pairs)


def filled_bank(model: BaseModel, adapters: list[AdapterWeights]) -> AdapterBank:
    bank = AdapterBank(model.linear_shapes, len(adapters) + 1, torch.float32, torch.device("cpu"))
    for slot, adapter in enumerate(adapters):
        bank.write(slot, adapter)
    return bank


def peft_twin(directory: Path, adapter: AdapterWeights, unembed: bool) -> Any:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules=targets + ["lm_head"] * unembed, lora_dropout=0.0
    )
    twin: Any = get_peft_model(load_plain(directory), config)
    for name, pair in adapter.pairs.items():
        layer = twin.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(pair.a_RD)
        layer.lora_B["default"].weight.data.copy_(pair.b_OR)
    return twin


def logprobs(logits_TV: Tensor, sequence: list[int]) -> Tensor:
    table = torch.log_softmax(logits_TV[:-1].float(), -1)
    return table.gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]


def ours(model: BaseModel, adapters: Any, slots: list[int], weights: list[Tensor] | None) -> list[Tensor]:
    """Log-probabilities of each sequence's own next tokens; runs backward where weights are given."""
    batch = packed(model, SEQUENCES, adapters, slots)
    hidden_TD = model.hidden(batch)
    targets = torch.full((hidden_TD.shape[0], 1), -1)
    for segment, sequence in zip(batch.segments, SEQUENCES, strict=True):
        targets[segment.start : segment.start + segment.length - 1, 0] = torch.tensor(sequence[1:])
    result = target_logprobs(model, hidden_TD, targets, adapters, batch.segments)
    parts = [result[s.start : s.start + s.length - 1, 0] for s in batch.segments]
    if weights is not None:
        torch.stack([-(w * p).sum() for w, p in zip(weights, parts, strict=True)]).sum().backward()
    return [part.detach() for part in parts]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_different_ranks_in_one_batch_equal_peft(tiny_dirs: dict[str, Path], family: str):
    model = load_tiny(tiny_dirs[family])
    adapters = [random_adapter(model, 4, 1), random_adapter(model, 11, 2, unembed=False)]
    bank = filled_bank(model, adapters)
    with torch.no_grad():
        got = ours(model, bank, [0, 1, -1], None)
        plain = load_plain(tiny_dirs[family])
        twins = [
            peft_twin(tiny_dirs[family], adapters[0], True),
            peft_twin(tiny_dirs[family], adapters[1], False),
            plain,
        ]
        for sequence, twin, part in zip(SEQUENCES, twins, got, strict=True):
            expected = logprobs(twin(torch.tensor([sequence])).logits[0], sequence)
            assert (part - expected).abs().max() < 1e-4


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradients_equal_peft_autograd(tiny_dirs: dict[str, Path], family: str, unembed: bool):
    model = load_tiny(tiny_dirs[family])
    adapters = [random_adapter(model, 4, 1, unembed), random_adapter(model, 11, 2, unembed)]
    sink = Sums()
    training = TrainingAdapters(filled_bank(model, adapters), sink, torch.device("cpu"))
    weights = [torch.rand(len(s) - 1) for s in SEQUENCES]
    ours(model, training, [0, 1, 1], weights)
    twin = peft_twin(tiny_dirs[family], adapters[1], unembed)
    for sequence, weight in zip(SEQUENCES[1:], weights[1:], strict=True):
        (-(weight * logprobs(twin(torch.tensor([sequence])).logits[0], sequence)).sum()).backward()
    for name in adapters[1].pairs:
        layer = twin.base_model.model.get_submodule(name)
        da = sink.sums[1, name][0] + sink.sums[2, name][0]
        db = sink.sums[1, name][1] + sink.sums[2, name][1]
        for got, expected in ((da, layer.lora_A["default"].weight.grad), (db, layer.lora_B["default"].weight.grad)):
            assert (got - expected).norm() <= 1e-4 * max(float(expected.norm()), 1e-3), name


def test_gradients_have_the_same_bits_alone_and_together(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    adapters = [random_adapter(model, 4, 1), random_adapter(model, 11, 2)]
    bank = filled_bank(model, adapters)
    together = Sums()
    ours(
        model,
        TrainingAdapters(bank, together, torch.device("cpu")),
        [0, 1, 0],
        [torch.ones(len(s) - 1) for s in SEQUENCES],
    )
    for index, sequence in enumerate(SEQUENCES):
        alone = Sums()
        training = TrainingAdapters(bank, alone, torch.device("cpu"))
        batch = packed(model, [sequence], training, [[0, 1, 0][index]])
        targets = torch.full((batch.token_ids_T.shape[0], 1), -1)
        targets[: len(sequence) - 1, 0] = torch.tensor(sequence[1:])
        result = target_logprobs(model, model.hidden(batch), targets, training, batch.segments)
        (-result.sum()).backward()
        for (_, name), (da, db) in alone.sums.items():
            assert torch.equal(da, together.sums[index, name][0]), name
            assert torch.equal(db, together.sums[index, name][1]), name


def test_equal_seeds_give_equal_adapters_and_flags_choose_the_linears(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    first, again = (initial_adapter(model.linear_shapes, spec(8, 3)) for _ in range(2))
    other = initial_adapter(model.linear_shapes, spec(8, 4))
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(first.pairs[name].a_RD, again.pairs[name].a_RD)
    assert not torch.equal(first.pairs[name].a_RD, other.pairs[name].a_RD)
    only_attn = initial_adapter(model.linear_shapes, RunSpec("r", "t", "tiny", 8, 3, True, False, False))
    assert {n.rsplit(".", 1)[1] for n in only_attn.pairs} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_slot_that_is_reused_holds_nothing_of_its_former_owner(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    wide, narrow = random_adapter(model, 16, 1), random_adapter(model, 2, 2, unembed=False)
    bank = filled_bank(model, [wide])
    bank.write(0, narrow)
    fresh = filled_bank(model, [narrow])
    with torch.no_grad():
        for got, expected in zip(ours(model, bank, [0, 0, 0], None), ours(model, fresh, [0, 0, 0], None), strict=True):
            assert torch.equal(got, expected)
    assert bank.factors(0, "lm_head") is None
