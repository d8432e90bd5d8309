"""Steps the optimizers of many runs: all norms first, in one transfer, then the updates."""

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from openrl.errors import OpenRLError, RequestFailed, Unavailable
from openrl.training.base import OptimStep
from openrl.training.optimizer import UpdateAdamW, apply_step, check_step, gradient_norms
from openrl.training.residency import Residency
from openrl.training.runs import TrainingRun

StepResult = dict[str, float] | RequestFailed


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step that may be made: its run has a slot and a gradient. `place`: among the steps asked for."""

    place: int
    step: OptimStep
    run: TrainingRun
    slot: int


class OptimizerSteps:
    """`adamw` also writes the slot's copy of the weights; without it they are copied after the step."""

    def __init__(self, residency: Residency, adamw: UpdateAdamW | None) -> None:
        self._residency = residency
        self._adamw = adamw

    def run(self, steps: Sequence[OptimStep]) -> list[StepResult]:
        """See TrainingEngine.optim_step."""
        results: dict[int, StepResult] = {}
        waiting = deque(enumerate(steps))
        while waiting:
            with ExitStack() as slots:
                wave = self._open(waiting, results, slots)
                for ready, norm in zip(wave, gradient_norms([ready.run for ready in wave]), strict=True):
                    results[ready.place] = self._apply(ready, norm)
        return [results[place] for place in range(len(steps))]

    def _open(
        self, waiting: deque[tuple[int, OptimStep]], results: dict[int, StepResult], slots: ExitStack
    ) -> list[ReadyStep]:
        """As many of the first steps as have slots together, each of another run; what cannot be made fails."""
        wave: list[ReadyStep] = []
        while waiting and waiting[0][1].run_id not in {ready.step.run_id for ready in wave}:
            place, step = waiting[0]
            try:
                slot = slots.enter_context(self._residency.on_device([step.run_id]))[step.run_id]
                run = self._residency.read(step.run_id)
                check_step(run, step.params)
                wave.append(ReadyStep(place, step, run, slot))
            except RequestFailed as failure:
                results[place] = failure
            except Unavailable as error:
                if wave:
                    return wave
                results[place] = RequestFailed(str(error), "server")
            except (OpenRLError, torch.OutOfMemoryError) as error:
                results[place] = RequestFailed(str(error), "server")
            waiting.popleft()
        return wave

    def _apply(self, ready: ReadyStep, norm: float) -> StepResult:
        try:
            metrics, is_copied = apply_step(ready.run, ready.slot, ready.step.params, norm, self._adamw)
        except RequestFailed as failure:
            return failure
        if not is_copied:
            self._residency.refresh(ready.step.run_id)
        return metrics
