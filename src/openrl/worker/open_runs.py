"""Remembers which runs a worker has open, and how far each has come."""

from dataclasses import dataclass

from openrl.errors import RequestFailed
from openrl.protocol.runs import RunSpec
from openrl.worker.engines import Engines, EngineTable


@dataclass(slots=True)
class OpenedRun:
    """A run in an engine; `last_seq_id`: the last request that was executed on it."""

    spec: RunSpec
    engines: Engines
    last_seq_id: int


class OpenRuns:
    """Runs by id; used from the compute thread only."""

    def __init__(self, engines: EngineTable) -> None:
        self._engines = engines
        self._by_id: dict[str, OpenedRun] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._by_id

    def ids(self) -> list[str]:
        """All of them."""
        return list(self._by_id)

    def add(self, spec: RunSpec, last_seq_id: int) -> None:
        """Remember a run that its engine has opened."""
        self._by_id[spec.run_id] = OpenedRun(spec, self.engines_of(spec), last_seq_id)

    def get(self, run_id: str) -> OpenedRun:
        """Raises RequestFailed where the run is not open here: the scheduler's or our own fault."""
        if run_id not in self._by_id:
            raise RequestFailed(f"run {run_id} is not open on this worker", "server")
        return self._by_id[run_id]

    def remove(self, run_id: str) -> OpenedRun | None:
        """Forget the run; unknown ones are fine."""
        return self._by_id.pop(run_id, None)

    def note_executed(self, run_id: str, seq_id: int) -> None:
        """The request was executed, well or not."""
        run = self._by_id.get(run_id)
        if run is not None:
            run.last_seq_id = max(run.last_seq_id, seq_id)

    def engines_of(self, spec: RunSpec) -> Engines:
        """The engines of the run's base model; raises RequestFailed where it is not served here."""
        if spec.base_model not in self._engines:
            raise RequestFailed(f"this worker does not serve base model {spec.base_model!r}", "server")
        return self._engines[spec.base_model]
