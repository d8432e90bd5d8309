"""A training pass through the kernels against the same pass linear by linear, on a GPU."""

from pathlib import Path

import pytest
import torch

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


def batch_of(model: BaseModel, adapters: object, slots: list[int]) -> Batch:
    host = packed(model, SEQUENCES, None, slots)
    tokens, positions = host.token_ids_T.to(CUDA), host.position_ids_T.to(CUDA) % 1024
    return Batch(tokens, positions, host.segments, PackedAttention(host.segments), adapters)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_pass_are_those_of_the_linears_one_by_one(tmp_path: Path, family: str, dtype: torch.dtype):
    model = load_base_model(ModelSource("tiny", save_tiny_model(family, tmp_path), CUDA, dtype))
    adapters = [random_adapter(model, 4, 1, unembed=False), random_adapter(model, 19, 2, unembed=False)]
    plain, grouped = AdapterBank(model.linear_shapes, 2, dtype, CUDA), create_bank(model, 2)
    for slot, adapter in enumerate(adapters):
        plain.write(slot, adapter)
        grouped.write(slot, adapter)
    sums, staged = Sums(), StagedSums([adapters[slot] for slot in SLOTS], CUDA)
    hidden = []
    for training in (TrainingAdapters(plain, sums, CUDA), training_adapters(grouped, staged, CUDA)):
        out_TD = model.hidden(batch_of(model, training, SLOTS))
        weights_TD = torch.randn(out_TD.shape, generator=torch.Generator().manual_seed(1)).to(CUDA, dtype)
        (out_TD * weights_TD).sum().backward()
        hidden.append(out_TD.detach())
    bound = 1e-3 if dtype == torch.float32 else 5e-2
    assert (hidden[0] - hidden[1]).norm() <= bound * hidden[0].norm()
    for (job, name), gradients in sums.sums.items():
        pair = staged.pairs[job][name]
        for mine, twin in zip((pair.a_RD, pair.b_OR), gradients, strict=True):
            assert (mine - twin).norm() <= bound * max(float(twin.norm()), 1e-3), (job, name)


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
