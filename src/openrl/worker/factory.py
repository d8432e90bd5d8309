"""Builds the real engines; the only place of the worker that knows which ones there are."""

from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from openrl.catalog import BaseModelInfo, Catalog
from openrl.config import Config
from openrl.errors import InvalidRequest
from openrl.model.adapter import AdapterWeights
from openrl.model.base_model import BaseModel, load_base_model, resolve_source
from openrl.model.peft_files import read_adapter
from openrl.sampling.engine import create_sampling_engine
from openrl.store.base import Blobs
from openrl.training.engine import create_training_engine
from openrl.worker.engines import Engines, EngineTable
from openrl.worker.warm_up import warm_up


def create_engines(config: Config, blobs: Blobs, scratch_dir: Path) -> EngineTable:
    """Load every served base model; raises InvalidRequest where one cannot be served."""
    transformers_logging.disable_progress_bar()
    if config.worker.threads:
        torch.set_num_threads(config.worker.threads)
    infos = Catalog.load(config.models).all()
    return {info.name: _create(info, config, blobs, scratch_dir / str(i)) for i, info in enumerate(infos)}


def _create(info: BaseModelInfo, config: Config, blobs: Blobs, scratch_dir: Path) -> Engines:
    model = _load(info, config)

    def load_adapter(key: str) -> AdapterWeights:
        return read_adapter(blobs.get_object(key), model.linear_shapes)

    training = create_training_engine(model, config.training, scratch_dir, deterministic=config.worker.deterministic)
    sampling = create_sampling_engine(model, config.sampling, load_adapter)
    engines = Engines(
        base_model=info,
        training=training,
        sampling=sampling,
        max_pass_tokens=training.micro_batch_tokens,
        max_sequences=sampling.max_sequences,
    )
    if model.device.type == "cuda":
        warm_up(engines)
    return engines


def _load(info: BaseModelInfo, config: Config) -> BaseModel:
    try:
        return load_base_model(resolve_source(info.name, info.path, config.worker))
    except (OSError, ValueError) as error:  # how transformers says that it cannot read a directory
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidRequest(f"model {info.name!r} at {info.path} cannot be loaded: {first_line}") from error
