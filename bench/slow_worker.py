"""A worker process whose sampling engine takes its time, for what depends on work that is under way."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.noop_worker import NoopSampling, NoopTraining
from openrl.catalog import Catalog
from openrl.config import Config
from openrl.sampling.base import FinishedSample, HasNews, no_news
from openrl.store.base import Blobs
from openrl.worker.engines import Engines, EngineTable
from openrl.worker.process import main

STEP_S = 0.01


class SlowSampling(NoopSampling):
    """One sample every STEP_S."""

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        time.sleep(STEP_S)
        waiting, self._jobs = self._jobs[1:], self._jobs[:1]
        finished = super().step(has_news)
        self._jobs = waiting
        return finished


def slow_engines(config: Config, blobs: Blobs, scratch_dir: Path) -> EngineTable:
    """Engines for every model of the configuration."""
    del blobs, scratch_dir
    models = Catalog.load(config.models).all()
    return {model.name: Engines(model, NoopTraining(), SlowSampling(), 8192, 64) for model in models}


if __name__ == "__main__":
    sys.exit(main(slow_engines))
