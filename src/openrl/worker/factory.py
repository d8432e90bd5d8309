"""Builds the real engines; the only place of the worker that knows which ones there are."""

from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from openrl.catalog import BaseModelInfo, Catalog, read_eos_token_ids
from openrl.config import Config
from openrl.errors import InvalidRequest
from openrl.model.adapter import AdapterWeights
from openrl.model.base_model import BaseModel, load_base_model, resolve_source
from openrl.model.peft_files import read_adapter
from openrl.sampling.engine import create_sampling_engine
from openrl.sampling.vllm import create_vllm_engine
from openrl.sampling.vllm_mapping import ModelFacts
from openrl.store.base import Blobs
from openrl.training.absent import AbsentTraining
from openrl.training.engine import create_training_engine
from openrl.worker.engines import Engines, EngineTable
from openrl.worker.held_adapters import HeldAdapters
from openrl.worker.patience import read_patiently
from openrl.worker.warm_up import warm_up


def create_engines(config: Config, blobs: Blobs, scratch_dir: Path) -> EngineTable:
    """Load every served base model; raises InvalidRequest where one cannot be served."""
    transformers_logging.disable_progress_bar()
    if config.worker.threads:
        torch.set_num_threads(config.worker.threads)
    infos = Catalog.load(config.models).all()
    if config.sampling.engine == "vllm" and len(infos) > 1:
        raise InvalidRequest(f"a worker with vLLM servers serves one base model, not {len(infos)}; start one for each")
    return {info.name: _create(info, config, blobs, scratch_dir / str(i)) for i, info in enumerate(infos)}


def _create(info: BaseModelInfo, config: Config, blobs: Blobs, scratch_dir: Path) -> Engines:
    if config.sampling.engine == "vllm":
        return _create_with_vllm(info, config, blobs, scratch_dir)
    model = _load(info, config)

    held = HeldAdapters(config.sampling.held_bytes)

    def load_adapter(key: str) -> AdapterWeights:
        return held.take(key) or read_adapter(read_patiently(lambda: blobs.get_object(key)), model.linear_shapes)

    training = create_training_engine(model, config.training, scratch_dir, deterministic=config.worker.deterministic)
    sampling = create_sampling_engine(model, config.sampling, load_adapter)
    engines = Engines(
        base_model=info,
        training=training,
        sampling=sampling,
        max_pass_tokens=training.micro_batch_tokens,
        max_sequences=sampling.max_sequences,
        held=held,
    )
    if model.device.type == "cuda":
        warm_up(engines)
    return engines


def _create_with_vllm(info: BaseModelInfo, config: Config, blobs: Blobs, scratch_dir: Path) -> Engines:
    """Sampling on other machines. A worker that does not train has no use for the weights and does not load them."""
    if config.worker.role == "sample":
        training, max_pass_tokens = AbsentTraining(), 1
    else:
        training = create_training_engine(
            _load(info, config), config.training, scratch_dir, deterministic=config.worker.deterministic
        )
        max_pass_tokens = training.micro_batch_tokens
    # Under the worker's name: what is there is its own alone, also after a restart.
    root = config.data_dir / config.sampling.vllm_adapter_dir / scratch_dir.parent.name / scratch_dir.name
    facts = ModelFacts(info.vocab_size, info.context_length, read_eos_token_ids(info.path))
    sampling = create_vllm_engine(
        config.sampling, facts, root, lambda key: read_patiently(lambda: blobs.get_object(key))
    )
    return Engines(info, training, sampling, max_pass_tokens, sampling.max_sequences)


def _load(info: BaseModelInfo, config: Config) -> BaseModel:
    try:
        return load_base_model(resolve_source(info.name, info.path, config.worker))
    except (OSError, ValueError) as error:  # how transformers says that it cannot read a directory
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidRequest(f"model {info.name!r} at {info.path} cannot be loaded: {first_line}") from error
