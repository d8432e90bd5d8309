"""What a worker computes with: one pair of engines per served base model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openrl.catalog import BaseModelInfo
from openrl.config import Config
from openrl.sampling.base import SamplingEngine
from openrl.store.base import Blobs
from openrl.training.base import TrainingEngine
from openrl.worker.held_adapters import HeldAdapters


@dataclass(frozen=True, slots=True)
class Engines:
    """Training and sampling over one copy of a base model's weights."""

    base_model: BaseModelInfo
    training: TrainingEngine
    sampling: SamplingEngine
    max_pass_tokens: int  # training tokens that fill the device
    max_sequences: int  # sequences decoded at once
    held: HeldAdapters = field(default_factory=HeldAdapters)  # of the latest saves


EngineTable = Mapping[str, Engines]  # by base model name
EngineFactory = Callable[[Config, Blobs, Path], EngineTable]  # the path: scratch space of this process alone
