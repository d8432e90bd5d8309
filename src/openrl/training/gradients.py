"""Flat fp32 buffers for LoRA factors, and the staging area where a job's gradients add up.

Legend: D inputs, O outputs, R rank, P parameters of one run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.model.adapter import LoraPair


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Where each factor lies in a run's flat buffers: per linear in model order, A before B."""

    shapes: Mapping[str, tuple[int, int]]  # linear name -> (D, O), only those the run trains
    rank: int

    @property
    def size(self) -> int:
        """Length P of a flat buffer."""
        return sum(self._sizes())

    def pairs(self, flat_P: Float[Tensor, " P"]) -> dict[str, LoraPair]:
        """Views of a flat buffer as factors."""
        sizes = [part for inputs, outputs in self.shapes.values() for part in (self.rank * inputs, self.rank * outputs)]
        parts = iter(flat_P.split(sizes))
        return {
            name: LoraPair(next(parts).view(self.rank, inputs), next(parts).view(outputs, self.rank))
            for name, (inputs, outputs) in self.shapes.items()
        }

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Name of each linear, and where its A and its B begin in a flat buffer."""
        starts = accumulate(self._sizes(), initial=0)
        for (name, (inputs, _)), start in zip(self.shapes.items(), starts, strict=False):
            yield name, start, start + self.rank * inputs

    def flatten(self, pairs: Mapping[str, LoraPair]) -> Float[Tensor, " P"]:
        """A new flat fp32 buffer on the host that holds the factors."""
        parts = [part.reshape(-1) for name in self.shapes for part in (pairs[name].a_RD, pairs[name].b_OR)]
        return torch.cat(parts).to("cpu", torch.float32) if parts else torch.zeros(0)

    def _sizes(self) -> Sequence[int]:
        return [self.rank * (inputs + outputs) for inputs, outputs in self.shapes.values()]


class StagedGradients:
    """Gradients of one job: added segment by segment, given to the run only when the job has succeeded."""

    def __init__(self, layout: FlatLayout, device: torch.device) -> None:
        self.flat_P = torch.zeros(layout.size, device=device)
        self._layout = layout
        self._pairs: dict[str, LoraPair] = {}  # made when they are first needed: kernels need addresses alone

    def emptied(self) -> "StagedGradients":
        """A staging area of the same shape with nothing in it."""
        return StagedGradients(self._layout, self.flat_P.device)

    def add(self, name: str, da_RD: Float[Tensor, "R D"], db_OR: Float[Tensor, "O R"]) -> None:
        """Add one segment's gradients of one linear."""
        if not self._pairs:
            self._pairs = self._layout.pairs(self.flat_P)
        pair = self._pairs[name]
        pair.a_RD.add_(da_RD)
        pair.b_OR.add_(db_OR)

    def addresses(self) -> dict[str, tuple[int, int]]:
        """Where dA and dB of each linear lie, for kernels that add to them."""
        base, size = self.flat_P.data_ptr(), self.flat_P.element_size()
        return {name: (base + size * at_a, base + size * at_b) for name, at_a, at_b in self._layout.places()}

    def is_finite(self) -> bool:
        """Whether no sum has overflowed or become NaN."""
        return all_finite([self])[0]


def all_finite(stages: Sequence[StagedGradients]) -> list[bool]:
    """Of each, whether no sum has overflowed or become NaN; the host waits for the device once."""
    # The largest absolute value is NaN or infinite if any value is: one pass, no mask in memory.
    norms = [
        torch.linalg.vector_norm(each.flat_P, torch.inf) if each.flat_P.numel() else each.flat_P.new_zeros(())
        for each in stages
    ]
    return torch.isfinite(torch.stack(norms)).tolist() if norms else []
