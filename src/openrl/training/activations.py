"""Plans how much of a pass's activations is kept, from how much memory there is.

A micro-batch has at most as many rows as keep all activations. A longer sequence cannot be divided: as many layers as
do not fit keep their input only, and are recomputed in the backward pass. Where memory runs out all the same, the plan
takes less from then on.
"""

import math
from dataclasses import dataclass

import torch

from openrl.model.base_model import BaseModel
from openrl.model.head import CHUNK_BYTES
from openrl.telemetry.logs import get_logger

log = get_logger(__name__)

KEPT_PER_LINEAR = 1.5
"""Bytes kept of a row in a layer, by the bytes that its linears take and give: norms, rotations and attention keep
theirs too. Measured on the four families in tests/training/test_activations.py."""

KEPT_PER_LINEAR_COMPILED = 1.1
"""The same where layers are compiled: 0.93 was measured for Qwen3-4B on an H100 (50.2 GiB with 8,104 rows)."""

HEAD_BYTES = 4 * CHUNK_BYTES
"""Logits of a chunk, and what is made of them, on CUDA."""

USABLE = 0.9
"""Share of free memory that is planned with: allocators cannot use all of it."""

SHRINK = 0.7
"""What is left of the plan after memory ran out."""


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """Bytes of one row in one decoder layer."""

    num_layers: int
    kept: float  # all that the backward pass needs
    input: float  # what a recomputed layer keeps

    def of(self, num_rows: int, recomputed: int) -> float:
        """Bytes held at the height of the backward pass; one recomputed layer is whole again at a time."""
        per_row = (self.num_layers - recomputed) * self.kept
        if recomputed:
            per_row += recomputed * self.input + self.kept
        return num_rows * per_row


def layer_costs(model: BaseModel) -> LayerCosts:
    """From the shapes of the model's linears; see KEPT_PER_LINEAR."""
    shapes = [shape for name, shape in model.linear_shapes.items() if ".layers." in name]
    values = sum(inputs + outputs for inputs, outputs in shapes) / model.num_layers
    item = model.dtype.itemsize
    kept = KEPT_PER_LINEAR_COMPILED if model.is_compiled else KEPT_PER_LINEAR
    return LayerCosts(model.num_layers, kept * values * item, model.head_weight.shape[1] * item)


class ActivationPlan:
    """`activation_bytes`: what activations may take; 0: on CUDA what is free when a pass begins, else no bound."""

    def __init__(self, costs: LayerCosts, device: torch.device, activation_bytes: int) -> None:
        self._costs = costs
        self._device = device
        self._limit = float(activation_bytes or math.inf)
        self._is_automatic = not activation_bytes
        self._budget = self._limit

    def begin(self) -> None:
        """Look how much there is for the next passes."""
        self._budget = self._limit
        if self._is_automatic and self._device.type == "cuda":
            self._budget = min(self._limit, max(USABLE * _free_bytes(self._device) - HEAD_BYTES, 0.0))

    @property
    def max_rows(self) -> float:
        """Rows whose activations are all kept; at least 1, may be infinite."""
        return max(1.0, self._budget / self._costs.of(1, 0))

    def recomputed_layers(self, num_rows: int) -> int:
        """How many layers of so many rows do not fit."""
        layers = range(self._costs.num_layers)
        fitting = (count for count in layers if self._costs.of(num_rows, count) <= self._budget)
        return next(fitting, self._costs.num_layers)

    def shrink(self, num_rows: int, num_groups: int) -> bool:
        """Memory ran out in a pass of so many rows. False: it can be neither divided nor recomputed any further."""
        recomputed = self.recomputed_layers(num_rows)
        if num_groups == 1 and recomputed == self._costs.num_layers:
            return False
        self._limit = SHRINK * min(self._budget, self._costs.of(num_rows, recomputed))
        log.warning("out_of_device_memory", num_rows=num_rows, recomputed=recomputed, planned_bytes=int(self._limit))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True


def _free_bytes(device: torch.device) -> int:
    """Device memory that nobody holds, or that only our own allocator does."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
