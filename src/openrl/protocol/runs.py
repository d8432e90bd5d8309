"""What a training run and a sampler are, and the kinds of requests they take."""

from dataclasses import dataclass
from typing import Literal

from openrl.errors import ErrorCategory

TrainingKind = Literal[
    "create_model",
    "load_weights",
    "forward_backward",
    "forward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
    "unload_model",
]
RequestKind = TrainingKind | Literal["sample", "create_custom_loss"]
STATE_CHANGING_KINDS: frozenset[TrainingKind] = frozenset(
    ("create_model", "load_weights", "forward_backward", "optim_step")
)
"""What a replay after a restart must run again; the other kinds leave no trace in the run."""
DROPPING_KIND: TrainingKind = "optim_step"
"""A request of this kind that fails on our side (category "server") has used up its run's gradient: also a trace."""
OptimizerFamily = Literal["adamw", "dimuon"]
CheckpointKind = Literal["weights", "sampler_weights", "external_weights"]


def changes_run(kind: RequestKind, has_failed: bool, category: ErrorCategory) -> bool:
    """Whether a request that has run left its run changed, so that a replay must do the same."""
    return kind == DROPPING_KIND and category == "server" if has_failed else kind in STATE_CHANGING_KINDS


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a training run is; enough to create it from nothing."""

    run_id: str
    tenant_id: str
    base_model: str
    rank: int
    seed: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    optimizer: OptimizerFamily = "adamw"


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """Weights to sample from: a base model, and the adapter stored under a blob key, if any."""

    sampler_id: str
    base_model: str
    adapter_key: str | None  # object key of a PEFT directory; None samples the base model
