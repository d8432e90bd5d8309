"""A cluster of real processes over PostgreSQL in which one worker trains and another has vLLM sample."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_cluster import LiveCluster, start_cluster
from tests.postgres import PostgresServer, new_database
from tests.sampling.vllm.pools import wait_until
from tests.sampling.vllm.test_serve import train_and_sample
from tests.vllm_model import PlainModel
from tests.vllm_server import VllmServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the SDK leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def vllm(tiny_model_dir: Path) -> Iterator[VllmServer]:
    server = VllmServer(PlainModel(tiny_model_dir))
    yield server
    server.stop()


@pytest.fixture
def cluster(tiny_model_dir: Path, tmp_path: Path, postgres: PostgresServer, vllm: VllmServer) -> Iterator[LiveCluster]:
    sampling = f'[sampling]\nengine = "vllm"\nvllm_urls = ["{vllm.url}"]\nvllm_health_s = 0.2\n'
    live = start_cluster(
        tiny_model_dir,
        tmp_path / "cluster",
        new_database(postgres),
        gateways=1,
        schedulers=1,
        workers=0,
        config=f'{sampling}vllm_adapter_dir = "{tmp_path / "adapters"}"\n',
    )
    live.start("worker", 0, "--role", "train")
    live.start("worker", 1, "--role", "sample")
    live.wait_for_workers(2)
    live.wait_until_ready()
    yield live
    live.stop()


# 20, 21, 30, 31: each tenant samples what it trained on the other worker, log-probabilities as there.
def test_two_tenants_train_on_one_worker_and_sample_through_another(
    cluster: LiveCluster, vllm: VllmServer, tmp_path: Path
):
    url = cluster.urls[0]
    said = [train_and_sample(url, key, number, vllm) for number, key in enumerate(cluster.keys)]
    assert said[0] != said[1]
    assert vllm.completions
    assert all(path.startswith(str(tmp_path / "adapters" / "worker-1")) for path in vllm.adapters.values())

    # A second worker over the same server is refused, and takes its place once the first is gone.
    cluster.start("worker", 2, "--role", "sample")
    refused = cluster.processes["worker"].pop(2)
    assert refused.wait(60.0) != 0
    assert f"{vllm.url} (worker 'worker-1')" in cluster.log("worker", 2).read_text()
    cluster.kill("worker", 1)
    cluster.start("worker", 2, "--role", "sample")
    cluster.wait_for_workers(2)
    num_before = len(vllm.completions)
    assert train_and_sample(url, cluster.keys[0], 0, vllm) == said[0]
    assert len(vllm.completions) > num_before
    wait_until(lambda: any("worker-2" in path for path in vllm.adapters.values()))
    gc.collect()
