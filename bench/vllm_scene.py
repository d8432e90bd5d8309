"""What `bench.vllm_pool` compares: a random model, adapters, our engine over the server, the built-in one beside."""

import queue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bench.models import config_of, random_adapter
from openrl.config import SamplingConfig, WorkerConfig
from openrl.errors import NotFound
from openrl.model.adapter import AdapterWeights
from openrl.model.base_model import BaseModel, load_base_model, resolve_source
from openrl.model.peft_files import adapter_files, read_adapter
from openrl.protocol.results import SampleResult
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import FinishedSample, SampleJob, SamplingOptions
from openrl.sampling.engine import PagedSamplingEngine, create_sampling_engine
from openrl.sampling.vllm import VllmSamplingEngine, create_vllm_engine
from openrl.sampling.vllm_mapping import ModelFacts

NUM_ADAPTERS = 8
LIMIT_S = 120.0
CONTEXT = 4096


def save_model(name: str, directory: Path, *, tiny: bool) -> Path:
    """Random weights with a tokenizer that has a word for every token; the same every time."""
    config = config_of(name, tiny=tiny)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    config.max_position_embeddings = min(config.max_position_embeddings, CONTEXT)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(directory)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    words = Tokenizer(models.WordLevel({f"w{i}.": i for i in range(config.vocab_size)}, unk_token="w0."))
    words.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0.", pad_token="w0.").save_pretrained(directory)
    return directory


def load_ours(directory: Path) -> BaseModel:
    """Our model of the directory, on the GPU in bf16 where there is one."""
    return load_base_model(resolve_source("base", directory, WorkerConfig(compile=False)))


def adapters_of(model_dir: Path) -> dict[str, dict[str, bytes]]:
    """Files by key: "0" to "7" of rank 32, "wide" of rank 64."""
    model = load_ours(model_dir)
    found = {str(number): adapter_files(random_adapter(model, number), "base") for number in range(NUM_ADAPTERS)}
    found["wide"] = adapter_files(random_adapter(model, 99, rank=64), "base")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


class Scene:
    """Both engines over one model and the same adapters."""

    def __init__(
        self, model_dir: Path, adapters: dict[str, dict[str, bytes]], url: str, served: Path, *, tiny: bool
    ) -> None:
        self.url = url
        self.tiny = tiny
        self.model = load_ours(model_dir)
        self._adapters = adapters
        self.built_in: PagedSamplingEngine = create_sampling_engine(
            self.model, SamplingConfig(cache_bytes=2**31 if not tiny else 2**26, burst_s=0.0), self._weights
        )
        facts = ModelFacts(self.model.vocab_size, self.model.context_length, self.model.eos_token_ids)
        config = SamplingConfig(engine="vllm", vllm_urls=(url,), vllm_request_s=LIMIT_S, resident_adapters=16)
        self.served = served
        self.pool: VllmSamplingEngine = create_vllm_engine(config, facts, served, self._files)
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.pool.on_news(lambda: self._news.put(None))
        self._names = 0

    def close(self) -> None:
        """End the pool's thread."""
        self.pool.close()

    def job(self, prompt: Any, adapter: str | None = None, num_samples: int = 1, **fields: Any) -> SampleJob:
        """Seed 1 and no end of sequence unless told otherwise; fields are those of jobs and of options."""
        self._names += 1
        of_job = {name: fields.pop(name) for name in list(fields) if name in SampleJob.__dataclass_fields__}
        chosen: dict[str, Any] = {"seed": 1, "max_tokens": 32, "stops_at_eos": False, **fields}
        sampler = SamplerSpec(f"s{adapter}", "base", adapter)
        return SampleJob(
            f"r{self._names}", sampler, np.asarray(prompt, np.int32), num_samples, SamplingOptions(**chosen), **of_job
        )

    def theirs(self, *jobs: SampleJob) -> list[FinishedSample]:
        """Through vLLM, all at once."""
        for job in jobs:
            self.pool.add(job)
        ended: dict[str, FinishedSample] = {}
        while len(ended) < len(jobs):
            if self.pool.has_work():
                ended |= {each.request_id: each for each in self.pool.step()}
            else:
                self._news.get(timeout=LIMIT_S)
        return [ended[job.request_id] for job in jobs]

    def results(self, *jobs: SampleJob) -> list[SampleResult]:
        """Through vLLM; none may fail."""
        return [checked(each) for each in self.theirs(*jobs)]

    def ours(self, *jobs: SampleJob) -> list[SampleResult]:
        """Through the built-in engine."""
        for job in jobs:
            self.built_in.add(job)
        ended: dict[str, FinishedSample] = {}
        while self.built_in.has_work():
            ended |= {each.request_id: each for each in self.built_in.step()}
        return [checked(ended[job.request_id]) for job in jobs]

    def _files(self, key: str) -> dict[str, bytes]:
        if key not in self._adapters:
            raise NotFound(f"no adapter {key!r}")
        return self._adapters[key]

    def _weights(self, key: str) -> AdapterWeights:
        return read_adapter(self._files(key), self.model.linear_shapes)


def checked(finished: FinishedSample) -> SampleResult:
    """The result of a job that must not have failed."""
    assert isinstance(finished.result, SampleResult), f"{finished.request_id} failed: {finished.result}"
    return finished.result
