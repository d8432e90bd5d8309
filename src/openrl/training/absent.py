"""Stands for the training engine in a worker that only samples."""

from collections.abc import Callable, Generator, Sequence
from typing import NoReturn

from openrl.errors import RequestFailed
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
from openrl.protocol.runs import RunSpec
from openrl.training.base import AdapterCopy, OptimStep, RunState


class AbsentTraining:
    """See TrainingEngine; it has no run and takes none."""

    def open_run(self, run: RunSpec, state: RunState | None) -> None:
        del state
        _refuse(run.run_id)

    def close_run(self, run_id: str) -> None:
        """Unknown runs are fine."""

    def export_run(self, run_id: str) -> RunState:
        _refuse(run_id)

    def copy_adapter(self, run_id: str) -> AdapterCopy:
        _refuse(run_id)

    def load_weights(self, run_id: str, state: RunState, with_optimizer: bool) -> None:
        del state, with_optimizer
        _refuse(run_id)

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[ForwardBackwardResult | RequestFailed]]:
        del max_rows
        yield from ()
        return [_failure(job.run_id) for job in jobs]

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        return [_failure(step.run_id) for step in steps]

    def drop_gradients(self, run_id: str) -> None:
        """There are none."""


def _failure(run_id: str) -> RequestFailed:
    return RequestFailed(f"this worker does not train (worker.role); run {run_id!r} came here by mistake", "server")


def _refuse(run_id: str) -> NoReturn:
    raise _failure(run_id)
