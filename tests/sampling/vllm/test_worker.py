"""The worker around an engine that computes elsewhere: it trains meanwhile, waits for answers, and drains."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrl.catalog import BaseModelInfo
from openrl.config import Config, ModelConfig, SamplingConfig, WorkerConfig
from openrl.errors import InvalidRequest, Unavailable
from openrl.rpc.messages import Cancel, ExecuteDone, Outcome, SampleDone, Shutdown
from openrl.sampling.base import SamplingEngine
from openrl.sampling.vllm import VllmSamplingEngine
from openrl.store.blobs import DirectoryBlobs
from openrl.worker.engines import Engines, EngineTable
from openrl.worker.factory import create_engines
from tests.sampling.vllm.conftest import StartEngine
from tests.sampling.vllm.pools import wait_until
from tests.vllm_server import VllmServer
from tests.worker.fake_engines import BASE_MODEL
from tests.worker.rig import RUN_ID, Rig, execute, open_run


class PoolRig(Rig):
    """A rig whose samples go to a pool."""

    def __init__(self, root: Path, pool: SamplingEngine) -> None:
        self._pool = pool
        super().__init__(root, idle_s=0.01)

    def engines(self, max_pass_tokens: int = 512) -> EngineTable:
        info = BaseModelInfo(BASE_MODEL, Path("/models/tiny"), "TinyForCausalLM", 512, 256)
        return {BASE_MODEL: Engines(info, self.training, self._pool, max_pass_tokens, 32)}

    def outcomes(self) -> dict[str, Outcome]:
        done = [report for report in self.reports if isinstance(report, SampleDone)]
        return {each.request_id: each for report in done for each in report.outcomes}


@pytest.fixture
def engine(start_engine: StartEngine, vllm: VllmServer) -> VllmSamplingEngine:
    return start_engine(vllm)


@pytest.fixture
def rig(tmp_path: Path, engine: VllmSamplingEngine) -> Iterator[PoolRig]:
    rig = PoolRig(tmp_path / "blobs", engine)
    yield rig
    rig.blobs.close()


def test_shutdown_waits_for_what_servers_have_in_hand(rig: PoolRig):
    samples = [rig.sample(f"s{number}", [1, 2, 3]) for number in range(6)]
    rig.run(*samples, Cancel("s3"))
    outcomes = rig.outcomes()
    assert sorted(outcomes) == ["s0", "s1", "s2", "s4", "s5"]
    for outcome in outcomes.values():
        assert outcome.result_ref
        assert outcome.num_tokens == 3 + outcome.num_sampled_tokens
        assert outcome.num_sampled_tokens == 2 * 4
        assert 0.0 < outcome.busy_s <= outcome.wall_s
    assert rig.executor.stats().busy_sample_s >= sum(outcome.busy_s for outcome in outcomes.values())


def test_training_goes_on_while_servers_sample(rig: PoolRig, vllm: VllmServer):
    vllm.may_answer.clear()
    thread = threading.Thread(target=rig.executor.run)
    thread.start()
    rig.inbox.put(rig.sample("slow", [1, 2, 3]))
    rig.inbox.put(open_run())
    rig.inbox.put(execute(rig.forward_backward(1)))
    wait_until(lambda: rig.training.gradients.get(RUN_ID) == 2.0)
    rig.inbox.put(Shutdown())
    wait_until(lambda: rig.inbox.empty())
    assert thread.is_alive()
    vllm.may_answer.set()
    thread.join(30.0)
    assert not thread.is_alive()
    rig.deliverers.close()
    rig.deliverers.saves.run()
    rig.deliverers.results.run()
    assert rig.outcomes()["slow"].result_ref
    assert any(isinstance(report, ExecuteDone) for report in rig.reports)


def config_of(model: Path, tmp_path: Path, *urls: str) -> Config:
    return Config(
        data_dir=tmp_path / "data",
        models=(ModelConfig(name="tiny", path=model),),
        sampling=SamplingConfig(engine="vllm", vllm_urls=urls),
        worker=WorkerConfig(role="sample"),
    )


def test_a_worker_that_only_samples_needs_no_weights(tiny_dirs: dict[str, Path], tmp_path: Path, vllm: VllmServer):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(tiny_dirs["llama"] / name, model)
    blobs = DirectoryBlobs(tmp_path / "blobs")
    [engines] = create_engines(config_of(model, tmp_path, vllm.url), blobs, tmp_path / "data/scratch/w0").values()
    sampling = engines.sampling
    assert isinstance(sampling, VllmSamplingEngine)
    with pytest.raises(Unavailable, match=f"{vllm.url} .worker 'w0'."):
        create_engines(config_of(model, tmp_path, vllm.url), blobs, tmp_path / "data/scratch/w1")
    rig = PoolRig(tmp_path / "rig", sampling)
    rig.run(rig.sample("s", [1, 2, 3]))
    assert rig.outcomes()["s"].result_ref
    sampling.close()
    rig.blobs.close()
    blobs.close()


def test_a_worker_without_servers_says_what_is_missing(tiny_dirs: dict[str, Path], tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    with pytest.raises(InvalidRequest, match="vllm_urls is empty"):
        create_engines(config_of(tiny_dirs["llama"], tmp_path), blobs, tmp_path / "scratch")
    blobs.close()
