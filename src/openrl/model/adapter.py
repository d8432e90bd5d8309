"""LoRA weights of one run or snapshot, and how a fresh one starts."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.protocol.runs import RunSpec

LORA_ALPHA = 32
"""LoRA scale is alpha / rank; the wire has no field for alpha, and the field's servers use 32."""

HEAD_NAME = "lm_head"
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of one linear layer: the layer gains `scale * B A`."""

    a_RD: Float[Tensor, "R D"]
    b_OR: Float[Tensor, "O R"]


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """LoRA factors by linear name (see BaseModel.linear_shapes)."""

    rank: int
    pairs: Mapping[str, LoraPair]
    alpha: float = LORA_ALPHA

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.alpha / self.rank


def adapted_names(spec: RunSpec, names: Iterable[str]) -> list[str]:
    """The linears that a run trains, in model order."""
    return [name for name in names if _is_trained(spec, name)]


def _is_trained(spec: RunSpec, name: str) -> bool:
    projection = name.rsplit(".", 1)[-1]
    if projection in ATTENTION_PROJECTIONS:
        return spec.train_attn
    if projection in MLP_PROJECTIONS:
        return spec.train_mlp
    return spec.train_unembed and name == HEAD_NAME


def initial_adapter(shapes: Mapping[str, tuple[int, int]], spec: RunSpec) -> AdapterWeights:
    """A fresh adapter: A uniform as PEFT draws it (Kaiming, a = sqrt 5), B zero; fp32 on the host.

    Drawn on the host from the run's seed alone, layer by layer in model order: equal seeds give equal
    adapters on every device. `shapes`: linear name -> (D inputs, O outputs).
    """
    generator = torch.Generator().manual_seed(spec.seed % 2**63)
    pairs: dict[str, LoraPair] = {}
    for name in adapted_names(spec, shapes):
        num_inputs, num_outputs = shapes[name]
        bound = math.sqrt(1.0 / num_inputs)  # gain sqrt(1/3) times sqrt(3 / fan_in)
        a_RD = torch.empty(spec.rank, num_inputs).uniform_(-bound, bound, generator=generator)
        pairs[name] = LoraPair(a_RD, torch.zeros(num_outputs, spec.rank))
    return AdapterWeights(rank=spec.rank, pairs=pairs)
