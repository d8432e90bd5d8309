"""The warm-up runs through real engines and leaves nothing behind."""

from pathlib import Path

import pytest

from openrl.config import Config, ModelConfig
from openrl.store.blobs import DirectoryBlobs
from openrl.worker.factory import create_engines
from openrl.worker.warm_up import warm_up


def test_a_warm_up_succeeds_and_leaves_nothing_behind(
    tiny_model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    config = Config(data_dir=tmp_path, models=(ModelConfig(name="tiny", path=tiny_model_dir),))
    [engines] = create_engines(config, DirectoryBlobs(tmp_path / "blobs"), tmp_path / "scratch").values()
    for _ in range(2):
        warm_up(engines)
    assert not engines.sampling.has_work()
    assert engines.sampling.stats().num_running == 0
    assert "warm-up failed" not in "".join(capfd.readouterr())
