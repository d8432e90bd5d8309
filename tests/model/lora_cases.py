"""Random adapters, rows and staged gradients for tests of LoRA kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from openrl.model.batch import Segment
from openrl.model.lora_tiles import GradientTable, GroupStack


@dataclass(frozen=True)
class Staged:
    """Where the gradients of jobs go: fp32, one flat buffer for each job."""

    flats: list[Tensor]
    table: GradientTable


def random_stack(
    outputs: tuple[int, ...], num_inputs: int, ranks: list[list[int]], dtype: torch.dtype, device: str, seed: int = 0
) -> GroupStack:
    """A stack whose padding beyond the next multiple of 16 is NaN. `ranks`: of each linear, by slot."""
    generator = torch.Generator().manual_seed(seed)
    padded = -(-max(max(each) for each in ranks) // 16) * 16
    num_slots = len(ranks[0])
    a = torch.full((num_slots, len(outputs), padded, num_inputs), float("nan"))
    b = [torch.full((num_slots, size, padded), float("nan")) for size in outputs]
    for part, of_slots in enumerate(ranks):
        for slot, rank in enumerate(of_slots):
            a[slot, part, : -(-rank // 16) * 16] = 0
            b[part][slot, :, : -(-rank // 16) * 16] = 0
            a[slot, part, :rank] = torch.randn(rank, num_inputs, generator=generator) * num_inputs**-0.5
            b[part][slot, :, :rank] = torch.randn(outputs[part], rank, generator=generator) * rank**-0.5 if rank else 0
    return GroupStack(
        a.flatten(1, 2).to(device, dtype),
        torch.cat(b, 1).to(device, dtype),
        (torch.rand(num_slots, generator=generator) + 0.5).to(device),
        torch.tensor(ranks, dtype=torch.int32, device=device),
        outputs,
    )


def staged_gradients(stack: GroupStack, segments: list[Segment], job_slots: list[int], seed: int = 3) -> Staged:
    """Buffers that already hold something, and the table of their addresses."""
    generator = torch.Generator().manual_seed(seed)
    flats: list[Tensor] = []
    address = torch.zeros(len(stack.outputs), len(job_slots), 2, dtype=torch.int64)
    for job, slot in enumerate(job_slots):
        ranks = stack.rank_GS[:, slot].tolist()
        sizes = [rank * (stack.num_inputs + size) for rank, size in zip(ranks, stack.outputs, strict=True)]
        flat = torch.randn(sum(sizes), generator=generator).to(stack.a_SND.device)
        at = flat.data_ptr()
        for part, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
            if rank:
                address[part, job] = torch.tensor([at, at + 4 * rank * stack.num_inputs])
            at += 4 * size
        flats.append(flat)
    device = stack.a_SND.device
    return Staged(flats, GradientTable.of(segments, address, device))
