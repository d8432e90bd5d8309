"""Compares the fused AdamW with torch's over factors of odd and even sizes; a script, since the interpreter is chosen
when triton is imported."""

import torch

from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.lora import AdapterBank
from openrl.training.adamw_kernels import FusedAdamW
from openrl.training.base import AdamParams
from openrl.training.gradients import FlatLayout
from openrl.training.optimizer import apply_step
from openrl.training.runs import TrainingRun
from tests.training.workbench import run_spec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_STEPS, LARGEST_RANK = 5, 32
Q_PROJ = "model.layers.0.self_attn.q_proj"
CASES = [({Q_PROJ: (7, 5), "lm_head": (6, 1500)}, 3), ({Q_PROJ: (320, 176), "lm_head": (64, 96)}, 16)]


def check(shapes: dict[str, tuple[int, int]], rank: int, dtype: torch.dtype) -> None:
    """A run steps by both; halfway the bank moves for a neighbour of larger rank."""
    torch.manual_seed(0)
    layout = FlatLayout(shapes, rank)
    start_P = torch.randn(layout.size)
    run, twin = (TrainingRun(run_spec("r", rank=rank), layout, start_P.clone().to(DEVICE)) for _ in range(2))
    bank = AdapterBank(shapes, 3, dtype, DEVICE)
    bank.write(1, run.adapter())
    fused = FusedAdamW(bank, dtype, DEVICE)
    neighbour = {
        name: LoraPair(torch.randn(LARGEST_RANK, inputs), torch.randn(outputs, LARGEST_RANK))
        for name, (inputs, outputs) in shapes.items()
    }
    for step in range(NUM_STEPS):
        if step == NUM_STEPS // 2:
            bank.write(2, AdapterWeights(LARGEST_RANK, neighbour))
        gradients_P = torch.randn(layout.size).to(DEVICE)
        params = AdamParams(learning_rate=1e-2, weight_decay=0.1, eps=1e-8, grad_clip_norm=0.5 if step % 2 else 0.0)
        for each, update in ((run, fused), (twin, None)):
            each.gradients_P = gradients_P.clone()
            _, is_copied = apply_step(each, 1, params, float(gradients_P.norm()), update)
            assert is_copied is (update is not None)
        for name, buffer in run.buffers().items():
            torch.testing.assert_close(buffer, twin.buffers()[name], rtol=2e-6, atol=1e-7)
        for name, pair in run.adapter().pairs.items():
            factors = bank.factors(1, name)
            assert factors is not None
            check_copy(factors.a_RD, pair.a_RD)
            check_copy(factors.b_OR, pair.b_OR)
    for name, pair in neighbour.items():
        factors = bank.factors(2, name)
        assert factors is not None
        assert torch.equal(factors.b_OR.cpu(), pair.b_OR.to(dtype))
        assert torch.equal(factors.a_RD.cpu(), pair.a_RD.to(dtype))


def check_copy(copy: torch.Tensor, master: torch.Tensor) -> None:
    """Rounded as torch rounds; Triton's interpreter cuts off instead, which is up to a unit in the last place."""
    if copy.is_cuda or copy.dtype == torch.float32:
        assert torch.equal(copy, master.to(copy.dtype))
    else:
        torch.testing.assert_close(copy, master.to(copy.dtype), rtol=2**-7, atol=0)


if __name__ == "__main__":
    for shapes, rank in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            check(shapes, rank, dtype)
