"""Servers that speak vLLM's HTTP API over a tiny Llama, engines over them, and the built-in engine beside."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openrl.config import SamplingConfig
from openrl.model.base_model import BaseModel
from openrl.sampling.engine import PagedSamplingEngine, create_sampling_engine
from openrl.sampling.vllm import VllmSamplingEngine, create_vllm_engine
from openrl.sampling.vllm_mapping import ModelFacts
from tests.sampling.vllm.pools import Objects, body_adapter
from tests.vllm_model import PlainModel
from tests.vllm_server import VllmServer

StartServer = Callable[..., VllmServer]
StartEngine = Callable[..., VllmSamplingEngine]


@pytest.fixture(scope="session")
def plain(tiny_dirs: dict[str, Path]) -> PlainModel:
    """What the servers compute with."""
    return PlainModel(tiny_dirs["llama"])


@pytest.fixture
def start_server(plain: PlainModel) -> Iterator[StartServer]:
    """Starts a server; keyword arguments are its flags."""
    started: list[VllmServer] = []

    def start(**flags: Any) -> VllmServer:
        started.append(VllmServer(plain, **flags))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def vllm(start_server: StartServer) -> VllmServer:
    """One server."""
    return start_server(max_logprobs=50)


@pytest.fixture
def objects(llama: BaseModel) -> Objects:
    """Stored snapshots by key: "1", "2", … are adapters of the layers' linears."""
    return Objects(llama)


@pytest.fixture
def start_engine(tmp_path: Path, objects: Objects, llama: BaseModel) -> Iterator[StartEngine]:
    """Starts an engine over servers; keyword arguments are settings of SamplingConfig."""
    started: list[VllmSamplingEngine] = []

    def start(*servers: VllmServer, **settings: Any) -> VllmSamplingEngine:
        urls = tuple(server.url for server in servers)
        chosen: dict[str, Any] = {"engine": "vllm", "vllm_urls": urls, "vllm_health_s": 0.05, **settings}
        config = SamplingConfig(**chosen)
        facts = ModelFacts(llama.vocab_size, llama.context_length, llama.eos_token_ids)
        started.append(create_vllm_engine(config, facts, tmp_path / "adapters", objects.read))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


@pytest.fixture
def built_in(llama: BaseModel) -> PagedSamplingEngine:
    """The engine whose answers count as right."""
    return create_sampling_engine(llama, SamplingConfig(), lambda key: body_adapter(llama, int(key)))
