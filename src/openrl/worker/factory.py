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
from openrl.sampling.absent import AbsentSampling
from openrl.sampling.engine import create_sampling_engine
from openrl.sampling.vllm import create_vllm_engine
from openrl.sampling.vllm_claim import ServerClaim
from openrl.sampling.vllm_mapping import ModelFacts
from openrl.store.base import Blobs
from openrl.training.absent import AbsentTraining
from openrl.training.base import TrainingEngine
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
    if config.sampling.engine == "vllm" and config.worker.role != "train":
        return _create_with_vllm(info, config, blobs, scratch_dir)
    model, role = _load(info, config), config.worker.role
    held = HeldAdapters(config.sampling.held_bytes if role == "both" else 0)

    def load_adapter(key: str) -> AdapterWeights:
        return held.take(key) or read_adapter(read_patiently(lambda: blobs.get_object(key)), model.linear_shapes)

    training, max_pass_tokens = _create_training(model, config, scratch_dir)
    sampling = AbsentSampling() if role == "train" else create_sampling_engine(model, config.sampling, load_adapter)
    engines = Engines(info, training, sampling, max_pass_tokens, sampling.max_sequences, held)
    if model.device.type == "cuda":
        warm_up(engines, trains=role != "sample", samples=role != "train")
    return engines


def _create_training(model: BaseModel, config: Config, scratch_dir: Path) -> tuple[TrainingEngine, int]:
    """The engine, and the tokens that fill the device."""
    if config.worker.role == "sample":
        return AbsentTraining(), 1
    engine = create_training_engine(model, config.training, scratch_dir, deterministic=config.worker.deterministic)
    return engine, engine.micro_batch_tokens


def _create_with_vllm(info: BaseModelInfo, config: Config, blobs: Blobs, scratch_dir: Path) -> Engines:
    """Sampling on other machines. A worker that does not train has no use for the weights and does not load them."""
    if config.worker.role == "sample":
        training, max_pass_tokens = AbsentTraining(), 1
    else:
        training, max_pass_tokens = _create_training(_load(info, config), config, scratch_dir)
    # Under the worker's name: what is there is its own alone, also after a restart.
    shared, worker_id = config.data_dir / config.sampling.vllm_adapter_dir, scratch_dir.parent.name
    root = shared / worker_id / scratch_dir.name
    facts = ModelFacts(info.vocab_size, info.context_length, read_eos_token_ids(info.path))
    claim = ServerClaim(config.sampling.vllm_urls, shared, worker_id)
    sampling = create_vllm_engine(
        config.sampling, facts, root, lambda key: read_patiently(lambda: blobs.get_object(key)), claim.close
    )
    return Engines(info, training, sampling, max_pass_tokens, sampling.max_sequences)


def _load(info: BaseModelInfo, config: Config) -> BaseModel:
    try:
        return load_base_model(resolve_source(info.name, info.path, config.worker))
    except (OSError, ValueError) as error:  # how transformers says that it cannot read a directory
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidRequest(f"model {info.name!r} at {info.path} cannot be loaded: {first_line}") from error
