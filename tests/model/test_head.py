"""Log-probabilities over blocks of the vocabulary against one dense softmax."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.model.batch import Segment
from openrl.model.head import ABSENT, target_logprobs
from openrl.model.lora import AdapterBank, TrainingAdapters
from tests.model.test_lora import Sums, filled_bank, random_adapter
from tests.model.tiny_models import VOCAB, load_tiny

SEGMENTS = (Segment(0, 13, 0, 0), Segment(13, 300, 1, 1), Segment(313, 2, -1, 2))
NUM_ROWS = 320


def dense(model: BaseModel, hidden_MD: Tensor, targets_MK: Tensor, bank: AdapterBank | None) -> Tensor:
    """The slow twin: all logits at once, in float64."""
    logits_MV = hidden_MD.double() @ model.head_weight.double().t()
    for segment in SEGMENTS:
        factors = bank.factors(segment.slot, "lm_head") if bank is not None else None
        if factors is not None:
            rows = slice(segment.start, segment.start + segment.length)
            x_LR = hidden_MD[rows].double() @ factors.a_RD.double().t()
            logits_MV[rows] += factors.scale * x_LR @ factors.b_OR.double().t()
    logprobs_MK = torch.log_softmax(logits_MV, -1).gather(1, targets_MK.clamp(min=0))
    return logprobs_MK.masked_fill(targets_MK == ABSENT, 0.0)


def inputs(model: BaseModel) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    hidden_MD = torch.randn(NUM_ROWS, model.head_weight.shape[1], requires_grad=True)
    targets_MK = torch.randint(0, VOCAB, (NUM_ROWS, 3))
    targets_MK[torch.rand(NUM_ROWS, 3) < 0.2] = ABSENT
    targets_MK[315:] = ABSENT  # padding
    return hidden_MD, targets_MK, torch.randn(NUM_ROWS, 3)


def taken_grad(leaf: Tensor) -> Tensor:
    """The leaf's gradient, which starts from nothing again."""
    assert leaf.grad is not None
    grad, leaf.grad = leaf.grad, None
    return grad


@pytest.mark.parametrize("block", [1, 100, 515, 2048])
@pytest.mark.parametrize("adapted", [False, True])
def test_values_and_gradients_equal_dense_whatever_the_block(tiny_dirs: dict[str, Path], block: int, adapted: bool):
    model = load_tiny(tiny_dirs["llama"])
    model.head_block = block
    bank = filled_bank(model, [random_adapter(model, 4, 1), random_adapter(model, 6, 2)]) if adapted else None
    hidden_MD, targets_MK, weights_MK = inputs(model)
    expected = dense(model, hidden_MD, targets_MK, bank)
    (expected * weights_MK).sum().backward()
    expected_grad = taken_grad(hidden_MD)
    adapters = None if bank is None else TrainingAdapters(bank, Sums(), torch.device("cpu"))
    got = target_logprobs(model, hidden_MD, targets_MK, adapters, SEGMENTS)
    (got * weights_MK).sum().backward()
    assert (got - expected).abs().max() < 2e-6
    assert (taken_grad(hidden_MD) - expected_grad).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(target_logprobs(model, hidden_MD, targets_MK, bank, SEGMENTS), got)


def test_rows_that_need_no_gradient_get_none_and_change_nothing_else(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    model.head_block = 100
    hidden_MD, targets_MK, weights_MK = inputs(model)
    needs_grad_M = torch.arange(NUM_ROWS) % 3 == 0
    full = target_logprobs(model, hidden_MD, targets_MK)
    (full * weights_MK)[needs_grad_M].sum().backward()
    expected = taken_grad(hidden_MD)
    part = target_logprobs(model, hidden_MD, targets_MK, needs_grad_M=needs_grad_M)
    (part * weights_MK * needs_grad_M[:, None]).sum().backward()
    assert torch.equal(part, full)
    assert torch.equal(taken_grad(hidden_MD), expected)


def test_logits_by_blocks_equal_one_product(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    hidden_MD, _, _ = inputs(model)
    whole = model.logits(hidden_MD)
    model.head_block = 96
    assert (model.logits(hidden_MD) - whole).abs().max() < 1e-5


def test_in_bf16_only_the_gradient_is_rounded_and_once(tiny_dirs: dict[str, Path]):
    model = load_base_model(ModelSource("tiny", tiny_dirs["llama"], torch.device("cpu"), torch.bfloat16))
    model.head_block = VOCAB  # as on CUDA
    hidden_MD, _, _ = inputs(model)
    narrow_MD = (8 * hidden_MD).detach().to(torch.bfloat16).requires_grad_()
    exact_MD = narrow_MD.detach().double().requires_grad_()
    logits_MV = model.logits(narrow_MD.detach())
    # Likely targets: what is left of W[y] - p W is then small.
    targets_M1 = logits_MV.argmax(-1, keepdim=True)
    expected = dense(model, exact_MD, targets_M1, None)
    expected.sum().backward()
    got = target_logprobs(model, narrow_MD, targets_M1)
    got.sum().backward()
    assert (got - expected).abs().max() < 1e-5
    assert (torch.log_softmax(logits_MV, -1).gather(1, targets_M1) - expected).abs().max() < 1e-5
    expected_grad = taken_grad(exact_MD)
    assert (taken_grad(narrow_MD) - expected_grad).norm() < 2**-8 * expected_grad.norm()
