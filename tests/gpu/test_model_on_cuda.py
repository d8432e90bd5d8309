"""The CUDA paths of the model against their CPU twins: hidden states, log-probabilities, gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from openrl.model.adapter import AdapterWeights
from openrl.model.attention import PackedAttention
from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.model.batch import Batch
from openrl.model.head import target_logprobs
from openrl.model.lora import AdapterBank, TrainingAdapters
from tests.model.test_lora import Sums, random_adapter
from tests.model.tiny_models import FAMILIES, packed, save_tiny_model

pytestmark = pytest.mark.gpu

SEQUENCES = [[5, 9, 14, 200, 3], list(range(10, 160)), [7, 8, 9] * 11]
SLOTS = [0, 1, 0]


def load(directory: Path, device: str, dtype: torch.dtype) -> BaseModel:
    return load_base_model(ModelSource("tiny", directory, torch.device(device), dtype))


def evaluate(model: BaseModel, adapters: list[AdapterWeights]) -> tuple[Tensor, Sums]:
    """Log-probabilities of every next token and the gradients of their sum."""
    bank = AdapterBank(model.linear_shapes, len(adapters), model.dtype, model.device)
    for slot, adapter in enumerate(adapters):
        bank.write(slot, adapter)
    sink = Sums()
    training = TrainingAdapters(bank, sink, model.device)
    on_host = packed(model, SEQUENCES, training, SLOTS)
    batch = Batch(
        on_host.token_ids_T.to(model.device),
        on_host.position_ids_T.to(model.device),
        on_host.segments,
        PackedAttention(on_host.segments),
        training,
    )
    targets = torch.full((batch.token_ids_T.shape[0], 1), -1, device=model.device)
    for segment, sequence in zip(batch.segments, SEQUENCES, strict=True):
        targets[segment.start : segment.start + segment.length - 1, 0] = torch.tensor(sequence[1:])
    logprobs = target_logprobs(model, model.hidden(batch), targets, training, batch.segments)
    (-logprobs.sum()).backward()
    return logprobs.detach().cpu(), sink


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_on_cuda_equals_cpu(tmp_path: Path, family: str, unembed: bool):
    torch.backends.cuda.matmul.allow_tf32 = False
    directory = save_tiny_model(family, tmp_path)
    cpu = load(directory, "cpu", torch.float32)
    adapters = [random_adapter(cpu, 4, 1, unembed), random_adapter(cpu, 16, 2, unembed)]
    expected, expected_grads = evaluate(cpu, adapters)
    got, grads = evaluate(load(directory, "cuda", torch.float32), adapters)
    assert (got - expected).abs().max() < 1e-4
    for key, (da, db) in expected_grads.sums.items():
        for mine, twin in zip(grads.sums[key], (da, db), strict=True):
            assert (mine.cpu() - twin).norm() <= 1e-3 * max(float(twin.norm()), 1e-3), key


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_on_cuda_stays_within_the_noise_of_bf16(tmp_path: Path, family: str):
    directory = save_tiny_model(family, tmp_path)
    cpu = load(directory, "cpu", torch.float32)
    adapters = [random_adapter(cpu, 4, 1), random_adapter(cpu, 16, 2)]
    expected, expected_grads = evaluate(cpu, adapters)
    got, grads = evaluate(load(directory, "cuda", torch.bfloat16), adapters)
    assert (got - expected).abs().mean() < 5e-2
    mine = torch.cat([g.cpu().flatten() for key in expected_grads.sums for g in grads.sums[key]])
    twin = torch.cat([g.flatten() for key in expected_grads.sums for g in expected_grads.sums[key]])
    assert torch.nn.functional.cosine_similarity(mine, twin, dim=0) > 0.98
