"""A training pass through the kernels against the same pass linear by linear, on a GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from openrl.model.adapter import AdapterWeights
from openrl.model.adapter_banks import create_bank, training_adapters
from openrl.model.attention import PackedAttention
from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.model.batch import Batch
from openrl.model.grouped_lora import GroupedBank
from openrl.model.linear_groups import FusedLinear
from openrl.model.lora import ActiveBatch, AdapterBank, TrainingAdapters
from openrl.model.lora_tiles import DECODE_TILE_ROWS, RowTiles
from tests.model.test_grouped_lora import StagedSums
from tests.model.test_lora import Sums, random_adapter
from tests.model.tiny_models import FAMILIES, packed, save_tiny_model

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SEQUENCES = [[5, 9, 14, 200, 3], list(range(10, 160)), [7, 8, 9] * 411]
SLOTS = [1, 0, 1]
Gradients = dict[tuple[int, str], tuple[Tensor, Tensor]]


def batch_of(model: BaseModel, adapters: object, slots: list[int]) -> Batch:
    host = packed(model, SEQUENCES, None, slots)
    tokens, positions = host.token_ids_T.to(CUDA), host.position_ids_T.to(CUDA) % 1024
    return Batch(tokens, positions, host.segments, PackedAttention(host.segments), adapters)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_pass_are_those_of_the_linears_one_by_one(tmp_path: Path, family: str):
    directory = save_tiny_model(family, tmp_path)
    plain_hidden, plain_sums = one_by_one(load(directory, torch.float32))
    hidden, sums = grouped(load(directory, torch.float32))
    assert relative_error(hidden, plain_hidden) <= 1e-3
    for key, pair in plain_sums.items():
        for mine, twin in zip(sums[key], pair, strict=True):
            assert (mine - twin).norm() <= 1e-3 * max(float(twin.norm()), 1e-3), key


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_they_are_as_near_to_fp32_as_those_of_the_linears_one_by_one(tmp_path: Path, family: str):
    directory = save_tiny_model(family, tmp_path)
    exact_hidden, exact = one_by_one(load(directory, torch.float32))
    plain_hidden, plain = one_by_one(load(directory, torch.bfloat16))
    hidden, sums = grouped(load(directory, torch.bfloat16))
    assert relative_error(hidden, exact_hidden) <= 1.5 * relative_error(plain_hidden, exact_hidden) + 1e-3
    for key, pair in exact.items():
        for mine, other, twin in zip(sums[key], plain[key], pair, strict=True):
            assert (mine - twin).norm() <= 1.5 * (other - twin).norm() + 1e-2 * twin.norm() + 1e-3, key


def load(directory: Path, dtype: torch.dtype) -> BaseModel:
    return load_base_model(ModelSource("tiny", directory, CUDA, dtype))


def adapters_of(model: BaseModel) -> list[AdapterWeights]:
    return [random_adapter(model, 4, 1, unembed=False), random_adapter(model, 19, 2, unembed=False)]


def one_by_one(model: BaseModel) -> tuple[Tensor, Gradients]:
    """Hidden states, and the gradients of a function of them, through the products of each linear."""
    bank, sums = AdapterBank(model.linear_shapes, 2, model.dtype, CUDA), Sums()
    for slot, adapter in enumerate(adapters_of(model)):
        bank.write(slot, adapter)
    return backward(model, TrainingAdapters(bank, sums, CUDA)), sums.sums


def grouped(model: BaseModel) -> tuple[Tensor, Gradients]:
    """The same through the kernels."""
    adapters, bank = adapters_of(model), create_bank(model, 2)
    for slot, adapter in enumerate(adapters):
        bank.write(slot, adapter)
    staged = StagedSums([adapters[slot] for slot in SLOTS], CUDA)
    hidden_TD = backward(model, training_adapters(bank, staged, CUDA))
    return hidden_TD, {(j, n): (p.a_RD, p.b_OR) for j, pairs in enumerate(staged.pairs) for n, p in pairs.items()}


def backward(model: BaseModel, adapters: TrainingAdapters) -> Tensor:
    hidden_TD = model.hidden(batch_of(model, adapters, SLOTS))
    weights_TD = torch.randn(hidden_TD.shape, generator=torch.Generator().manual_seed(1)).to(CUDA, model.dtype)
    (hidden_TD * weights_TD).sum().backward()
    return hidden_TD.detach().float()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_captured_graph_follows_the_tables(tmp_path: Path):
    model = load_base_model(ModelSource("tiny", save_tiny_model("qwen3", tmp_path), CUDA, torch.bfloat16))
    bank = create_bank(model, 2)
    assert isinstance(bank, GroupedBank)
    for slot in range(2):
        bank.write(slot, random_adapter(model, 8, slot + 1, unembed=False))
    name = "model.layers.0.mlp.down_proj"
    stack = bank.stack_of(name)
    assert stack is not None
    tiles = RowTiles.empty(12, DECODE_TILE_ROWS, CUDA)
    x_TD = torch.randn(60, stack.num_inputs, device=CUDA, dtype=torch.bfloat16)
    adapters, y_TO = bank.with_tiles(tiles), torch.zeros(60, stack.outputs[0], device=CUDA, dtype=torch.bfloat16)
    adapters.apply(name, x_TD, y_TO, ())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        adapters.apply(name, x_TD, y_TO, ())
    for slots in ([0, 1, -1], [1, -1, 0]):
        segments = packed(model, [[1] * 20] * 3, None, slots).segments
        tiles.refill(segments)
        y_TO.zero_()
        graph.replay()
        expected = bank.apply(name, x_TD, torch.zeros_like(y_TO), segments)
        assert (y_TO.float() - expected.float()).norm() <= 1e-2 * expected.float().norm()


def test_a_captured_product_with_its_shrink_beside_it_is_the_one_without(tmp_path: Path):
    model = load_base_model(ModelSource("tiny", save_tiny_model("qwen3", tmp_path), CUDA, torch.bfloat16))
    bank = create_bank(model, 2)
    assert isinstance(bank, GroupedBank)
    for slot in range(2):
        bank.write(slot, random_adapter(model, 8, slot + 1, unembed=False))
    group = next(group for group in model.linear_groups if group.names[0] == "model.layers.0.mlp.gate_proj")
    weights = [torch.nn.Linear(group.num_inputs, size, False, CUDA, torch.bfloat16) for size in group.outputs]
    fused = FusedLinear(weights, group, ActiveBatch())
    tiles = RowTiles.empty(12, DECODE_TILE_ROWS, CUDA)
    x_TD = torch.randn(60, group.num_inputs, device=CUDA, dtype=torch.bfloat16)
    with torch.inference_mode():
        bank.fused_product(fused, x_TD, tiles)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            bank.fused_product(fused, x_TD, tiles)  # whose memory the next one takes
            got = bank.fused_product(fused, x_TD, tiles)
        for slots in ([0, 1, -1], [1, -1, 0]):
            tiles.refill(packed(model, [[1] * 20] * 3, None, slots).segments)
            graph.replay()
            expected = bank.fused_product(fused, x_TD, tiles)
            assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
