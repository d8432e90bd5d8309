"""A worker of one role has the engine of that role alone."""

from pathlib import Path

import numpy as np
import pytest

from openrl.config import Config, ModelConfig, WorkerConfig, WorkerRole
from openrl.errors import RequestFailed
from openrl.protocol.runs import RunSpec, SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.store.memory_blobs import MemoryBlobs
from openrl.worker.engines import Engines
from openrl.worker.factory import create_engines

RUN = RunSpec("r", "t", "tiny", 4, 0, True, True, False)


def engines_of(role: WorkerRole, model_dir: Path, scratch_dir: Path) -> Engines:
    models, worker = (ModelConfig(name="tiny", path=model_dir),), WorkerConfig(role=role)
    return create_engines(Config(models=models, worker=worker), MemoryBlobs(), scratch_dir)["tiny"]


def sampled(engines: Engines) -> object:
    prompt = np.arange(5, dtype=np.int32)
    engines.sampling.add(SampleJob("q", SamplerSpec("s", "tiny", None), prompt, 1, SamplingOptions(max_tokens=3)))
    while engines.sampling.has_work():
        for finished in engines.sampling.step():
            return finished.result
    return None


def test_a_worker_that_only_trains_has_no_kv_cache(tiny_model_dir: Path, tmp_path: Path):
    engines = engines_of("train", tiny_model_dir, tmp_path)
    assert engines.sampling.stats().kv_blocks_total == 0
    engines.training.open_run(RUN, None)
    assert engines.training.export_run("r").adapter
    assert isinstance(sampled(engines), RequestFailed)


def test_a_worker_that_only_samples_has_no_training_engine(tiny_model_dir: Path, tmp_path: Path):
    engines = engines_of("sample", tiny_model_dir, tmp_path)
    assert engines.sampling.stats().kv_blocks_total > 0
    assert not isinstance(sampled(engines), RequestFailed)
    with pytest.raises(RequestFailed, match="does not train"):
        engines.training.open_run(RUN, None)
