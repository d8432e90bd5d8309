"""The head on CUDA against float64: bf16 rows, large logits, absent targets, rows without a gradient."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrl.model.head import ABSENT, target_logprobs

pytestmark = pytest.mark.gpu

NUM_ROWS, NUM_INPUTS, VOCAB = 1000, 256, 151936
LARGE = 300_000
"""A vocabulary of which a gibibyte holds fewer rows: the call takes two chunks."""


def make_model(vocab: int) -> Any:
    weight_VD = torch.randn(vocab, NUM_INPUTS, device="cuda", dtype=torch.bfloat16)
    return SimpleNamespace(
        device=weight_VD.device,
        dtype=weight_VD.dtype,
        vocab_size=vocab,
        head_weight=weight_VD,
        head_rows=weight_VD.__getitem__,
        head_blocks=lambda: iter([slice(0, vocab)]),
    )


@pytest.mark.parametrize("vocab", [VOCAB, LARGE])
@pytest.mark.parametrize("num_targets", [1, 20])
@pytest.mark.parametrize("excludes", [False, True])
def test_values_and_gradients_equal_float64(vocab: int, num_targets: int, excludes: bool):
    torch.manual_seed(1)
    model = make_model(vocab)
    hidden_MD = torch.randn(NUM_ROWS, NUM_INPUTS, device="cuda").to(torch.bfloat16).requires_grad_()
    targets_MK = torch.randint(0, vocab, (NUM_ROWS, num_targets), device="cuda")
    targets_MK[torch.rand(NUM_ROWS, num_targets, device="cuda") < 0.2] = ABSENT
    weights_MK = torch.randn(NUM_ROWS, num_targets, device="cuda")
    needs_grad_M = torch.arange(NUM_ROWS) % 3 == 0 if excludes else None
    if needs_grad_M is not None:
        weights_MK[~needs_grad_M.cuda()] = 0.0
    got = target_logprobs(model, hidden_MD, targets_MK, needs_grad_M=needs_grad_M)
    (got * weights_MK).sum().backward()
    assert hidden_MD.grad is not None
    for rows in torch.arange(NUM_ROWS, device="cuda").split(250):
        exact_CD = hidden_MD.detach()[rows].double().requires_grad_()
        exact_CV = torch.log_softmax(exact_CD @ model.head_weight.double().t(), -1)
        expected = exact_CV.gather(1, targets_MK[rows].clamp(min=0)).masked_fill(targets_MK[rows] == ABSENT, 0.0)
        (expected * weights_MK[rows]).sum().backward()
        assert exact_CD.grad is not None
        assert (got[rows] - expected).abs().max() < 1e-4
        assert (hidden_MD.grad[rows] - exact_CD.grad).norm() < 2**-7 * exact_CD.grad.norm()
