"""What one H100 allows: the formulas behind the limits that benchmarks are held against.

798 TFLOP/s is what a large bf16 product of random data reaches there, 3.0 TB/s what a copy reads and writes.
"""

from dataclasses import dataclass
from typing import Any

from openrl.model.base_model import BaseModel

PEAK_FLOPS = 798e12
PEAK_BYTES = 3.0e12
STEP_BYTES = 30
"""Read and written by AdamW for a parameter: weight, both moments, gradient in fp32, and the bf16 copy."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one model with adapters of rank `rank` on the linears of every layer."""

    body: int  # parameters of the layers' linears
    head: int  # of the head
    lora: int  # of one adapter
    kv_bytes: int  # of one token, over all layers
    attention_flops: int  # forward, of one token for one key that it sees, over all layers
    windows: tuple[int | None, ...]  # by layer

    def training_rate(self, length: int) -> float:
        """Tokens/s of forward and backward over sequences of a length: nothing is computed twice.

        Forward and gradient of the inputs for frozen weights, both and the weights' gradients for the adapters,
        2.5 forwards for the backward pass of attention.
        """
        flops = 4 * (self.body + self.head) + 6 * self.lora + 3.5 * self._attention(length / 2)
        return PEAK_FLOPS / flops

    def decode_rate(self, num_sequences: int, context: float, num_adapters: int = 0) -> float:
        """Tokens/s of decoding at a mean context: weights, adapters and keys are read once a step."""
        keys = sum(min(context, window or context) for window in self.windows) / len(self.windows)
        weights = 2 * (self.body + self.head + num_adapters * self.lora)
        by_bytes = (weights + num_sequences * keys * self.kv_bytes) / PEAK_BYTES
        flops = 2 * (self.body + self.head) + (2 * self.lora if num_adapters else 0) + self._attention(context)
        return num_sequences / max(by_bytes, num_sequences * flops / PEAK_FLOPS)

    def optim_s(self) -> float:
        """Seconds of one AdamW step."""
        return STEP_BYTES * self.lora / PEAK_BYTES

    def _attention(self, keys: float) -> float:
        seen = sum(min(keys, window or keys) for window in self.windows) / len(self.windows)
        return self.attention_flops * seen


def limits_of(model: BaseModel, rank: int) -> Limits:
    """The limits of a model."""
    shapes: dict[str, Any] = dict(model.linear_shapes)
    vocab, dim = model.head_weight.shape
    linears = [shape for name, shape in shapes.items() if "layers." in name]
    return Limits(
        body=sum(inputs * outputs for inputs, outputs in linears),
        head=vocab * dim,
        lora=rank * sum(inputs + outputs for inputs, outputs in linears),
        kv_bytes=4 * model.num_layers * model.num_kv_heads * model.head_dim,
        attention_flops=4 * model.num_layers * model.num_heads * model.head_dim,
        windows=tuple(model.layer_windows),
    )
