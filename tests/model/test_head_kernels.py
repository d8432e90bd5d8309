"""The head's kernels against float64: compiled where there is a GPU, else interpreted."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrl.model.head import ABSENT, HeadChunk, HeadPlan

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_ROWS = 5


def make_logits(vocab: int) -> torch.Tensor:
    """Of a sure model and of an unsure one; the first rows' largest logits lie at the ends."""
    torch.manual_seed(vocab)
    logits_CV = torch.randn(NUM_ROWS, vocab) * torch.tensor([[30.0], [3.0], [0.01], [10.0], [1.0]])
    logits_CV[0, 0], logits_CV[1, -1] = 200.0, 200.0
    logits_CV[2] -= 500.0
    return logits_CV.to(DEVICE)


def make_targets(vocab: int, num_targets: int) -> torch.Tensor:
    targets_CK = torch.randint(0, vocab, (NUM_ROWS, num_targets))
    targets_CK[torch.rand(NUM_ROWS, num_targets) < 0.2] = ABSENT
    targets_CK[:, 0] = torch.tensor([0, vocab - 1, ABSENT, vocab // 2, 1])
    return targets_CK.to(DEVICE)


@pytest.mark.parametrize("num_targets", [1, 20])
@pytest.mark.parametrize("vocab", [97, 8192, 20000])
def test_logprobs_equal_float64_and_absent_targets_give_zero(vocab: int, num_targets: int):
    from openrl.model.head_kernels import row_logprobs

    logits_CV, targets_CK = make_logits(vocab), make_targets(vocab, num_targets)
    logprobs_CK, lse_C = row_logprobs(logits_CV, targets_CK)
    exact_CV = torch.log_softmax(logits_CV.double(), -1)
    expected_CK = exact_CV.gather(1, targets_CK.clamp(min=0)).masked_fill(targets_CK == ABSENT, 0.0)
    torch.testing.assert_close(logprobs_CK.double(), expected_CK, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(lse_C.double(), torch.logsumexp(logits_CV.double(), -1), rtol=1e-6, atol=1e-5)
    assert (logprobs_CK[targets_CK == ABSENT] == 0).all()


@pytest.mark.parametrize("chosen", [None, [3], [0, 1, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_of_chosen_rows_equal_float64(chosen: list[int] | None, dtype: torch.dtype):
    from openrl.model.head_kernels import probabilities, row_logprobs

    logits_CV = make_logits(20000)
    lse_C = row_logprobs(logits_CV, make_targets(20000, 1))[1]
    chosen_P = None if chosen is None else torch.tensor(chosen, device=DEVICE)
    got_PV = probabilities(logits_CV, lse_C, chosen_P, dtype)
    expected_CV = torch.softmax(logits_CV.double(), -1)
    expected_PV = expected_CV if chosen_P is None else expected_CV[chosen_P]
    assert got_PV.dtype == dtype
    # A bf16 value is cut off by the interpreter, rounded by a device.
    rtol = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got_PV.double(), expected_PV, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("chosen", [[], [1, 3], list(range(8))])
def test_a_chunk_by_kernels_equals_one_by_torch_alone(chosen: list[int]):
    num_rows, vocab, num_inputs = 8, 20000, 16
    weight_VD = torch.randn(vocab, num_inputs, device=DEVICE)
    model: Any = SimpleNamespace(
        device=DEVICE,
        dtype=torch.float32,
        vocab_size=vocab,
        head_weight=weight_VD,
        head_rows=weight_VD.__getitem__,
        head_blocks=lambda: iter([slice(0, vocab)]),
    )
    targets_MK = torch.randint(ABSENT, vocab, (num_rows, 3), device=DEVICE)
    plan = HeadPlan(model, targets_MK, None, (), None)
    chunk = HeadChunk(plan, torch.randn(num_rows, num_inputs, device=DEVICE), slice(0, num_rows))
    chosen_C = torch.tensor(chosen, dtype=torch.int64, device=DEVICE)
    logprobs_CK, expected = chunk.run_fused(chosen_C)
    twin_CK, twin = chunk.run_by_blocks(chosen_C)
    torch.testing.assert_close(logprobs_CK, twin_CK, rtol=1e-5, atol=1e-5)
    assert (expected is None) == (twin is None) == (not chosen)
    torch.testing.assert_close(expected, twin, rtol=1e-4, atol=1e-4)
