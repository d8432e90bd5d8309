"""The training engine: many runs' requests packed together over one base model.

A job's numbers do not depend on what else is in the pass: rows are independent of each other, losses are
formed datum by datum and gradients group by group (see prefix_groups; on CUDA, unless asked, job by job),
gradients add up in datum order in the job's own staging area, and that is added to the run's pending gradients
once, when the whole job has succeeded. Between two micro-batches a pass holds no adapter slot, so that others can
be under way beside it.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch

from openrl.config import TrainingConfig
from openrl.errors import RequestFailed
from openrl.model.adapter import HEAD_NAME
from openrl.model.adapter_banks import create_bank
from openrl.model.base_model import BaseModel
from openrl.model.lora import AdapterBank
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
from openrl.protocol.runs import RunSpec
from openrl.training.activations import ActivationPlan, layer_costs
from openrl.training.adapter_copy import AdapterCopy
from openrl.training.base import OptimStep, RunState, TrainingEngine
from openrl.training.gradients import StagedGradients
from openrl.training.job import Job, open_job
from openrl.training.micro_batch_pass import PassContext, run_micro_batch
from openrl.training.optimizer import UpdateAdamW
from openrl.training.optimizer_steps import OptimizerSteps
from openrl.training.packing import Place, pack
from openrl.training.residency import Residency
from openrl.training.runs import create_run, export_state, load_weights
from openrl.training.spill import SpillDirectory

JobResult = ForwardBackwardResult | RequestFailed

MAX_GROUP_ROWS = 8192
"""Rows of datums that share a prefix: they cannot be divided, and others wait for them."""


class PackedTrainingEngine(TrainingEngine):
    """See TrainingEngine. `micro_batch_tokens`: rows of one forward and backward pass.

    `shares_prefixes`: compute the tokens that a job's datums begin with once; the log-probabilities are the same.
    """

    def __init__(
        self,
        context: PassContext,
        residency: Residency,
        micro_batch_tokens: int,
        plan: ActivationPlan,
        steps: OptimizerSteps,
        shares_prefixes: bool = True,
    ) -> None:
        self._context = context
        self._steps = steps
        self._plan = plan
        self._model = context.model
        self._residency = residency
        self.micro_batch_tokens = micro_batch_tokens
        self._shares_prefixes = shares_prefixes

    def open_run(self, run: RunSpec, state: RunState | None) -> None:
        self._residency.add(create_run(run, self._model.linear_shapes, state))

    def close_run(self, run_id: str) -> None:
        self._residency.remove(run_id)

    def export_run(self, run_id: str) -> RunState:
        return export_state(self._residency.read(run_id))

    def copy_adapter(self, run_id: str) -> AdapterCopy:
        return AdapterCopy(self._residency.read(run_id))

    def load_weights(self, run_id: str, state: RunState, with_optimizer: bool) -> None:
        self._residency.add(load_weights(self._residency.read(run_id), state, with_optimizer))

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        return self._steps.run(steps)

    def drop_gradients(self, run_id: str) -> None:
        self._residency.read(run_id).gradients_P = None

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[JobResult]]:
        def budget() -> int:
            return min(max_rows(), self.micro_batch_tokens) if max_rows else self.micro_batch_tokens

        results: dict[int, JobResult] = {}
        for wave in self._waves(jobs):
            opened = self._open_jobs(jobs, wave, results)
            yield from self._run_wave(list(opened.values()), budget)
            for index, job in opened.items():
                self._commit(job)
                results[index] = job.result()
        return [results[index] for index in range(len(jobs))]

    def _waves(self, jobs: Sequence[ForwardBackwardInput]) -> list[list[int]]:
        """Job indices that compute together: all forward-only or none, and no more runs than slots."""
        waves: list[list[int]] = []
        for is_forward_only in (False, True):
            wave: list[int] = []
            for index in (index for index, job in enumerate(jobs) if job.is_forward_only == is_forward_only):
                run_ids = {jobs[other].run_id for other in wave} | {jobs[index].run_id}
                if len(run_ids) > self._context.bank.num_slots:
                    waves.append(wave)
                    wave = []
                wave.append(index)
            waves.append(wave)
        return [wave for wave in waves if wave]

    def _open_jobs(
        self, jobs: Sequence[ForwardBackwardInput], wave: Sequence[int], results: dict[int, JobResult]
    ) -> dict[int, Job]:
        """The wave's jobs that can run; the others' failures go into `results`."""
        opened: dict[int, Job] = {}
        max_group_rows = min(self.micro_batch_tokens, MAX_GROUP_ROWS) if self._shares_prefixes else 0
        for index in wave:
            job = open_job(self._model, jobs[index], max_group_rows)
            if isinstance(job, Job) and job.input.run_id not in self._residency:
                job = RequestFailed(f"run {job.input.run_id!r} is not open on this worker", "server")
            if isinstance(job, Job):
                opened[index] = job
            else:
                results[index] = job
        return opened

    def _run_wave(self, jobs: Sequence[Job], budget: Callable[[], int]) -> Generator[int, None, None]:
        """Compute every datum of the jobs; from the start again, with less at once, where memory runs out.

        The pass that ran out may have staged a part of its gradients.
        """
        while not (yield from self._try_wave(jobs, budget)):
            pass

    def _try_wave(self, jobs: Sequence[Job], budget: Callable[[], int]) -> Generator[int, None, bool]:
        """Micro-batch by micro-batch; False where memory ran out and the plan has become smaller."""
        for job in jobs:
            if job.error is None and not job.input.is_forward_only:
                layout = self._residency.read(job.input.run_id).layout
                job.staged = StagedGradients(layout, self._model.device)
        self._plan.begin()
        lengths = [[group.num_rows for group in job.groups] for job in jobs]
        for places in pack(lengths, lambda: int(min(budget(), self._plan.max_rows))):
            live = [place for place in places if jobs[place.job].error is None]
            num_rows = sum(lengths[place.job][place.group] for place in live)
            if live and not self._has_room(jobs, live, num_rows):
                if self._plan.shrink(num_rows, len(live)):
                    return False
                _fail_for_memory(jobs[live[0].job], live[0], num_rows)
            yield num_rows
        return True

    def _has_room(self, jobs: Sequence[Job], places: Sequence[Place], num_rows: int) -> bool:
        """Run one micro-batch; False where memory ran out."""
        recomputed_layers = self._plan.recomputed_layers(num_rows)
        try:
            with self._residency.on_device([jobs[place.job].input.run_id for place in places]) as slots:
                run_micro_batch(self._context, jobs, places, slots, recomputed_layers)
        except torch.OutOfMemoryError:
            return False  # and not in here: the error's traceback holds the tensors of the pass
        return True

    def _commit(self, job: Job) -> None:
        """Give the run what a successful job has staged."""
        run_id = job.input.run_id
        if job.error is None and job.staged is not None and run_id in self._residency:
            with self._residency.on_device([run_id]):  # another pass may have taken its slot since
                self._residency.read(run_id).add_gradients(job.staged.flat_P)


def _fail_for_memory(job: Job, place: Place, num_rows: int) -> None:
    numbers = " or ".join(map(str, job.groups[place.group].datums))
    message = f"{num_rows} tokens do not fit into device memory, even with all layers recomputed"
    job.fail(f"datum {numbers}", RequestFailed(message, "server"))


def create_training_engine(
    model: BaseModel,
    config: TrainingConfig,
    scratch_dir: Path,
    *,
    deterministic: bool = False,
    shares_prefixes: bool = True,
) -> PackedTrainingEngine:
    """An engine over the model; `scratch_dir` is for this process alone and may be deleted when it ends.

    `deterministic`: gradients do not depend on who shares a pass, to the bit, also on CUDA; slower there.
    `shares_prefixes`: see PackedTrainingEngine.
    """
    is_cuda = model.device.type == "cuda"
    bank = create_bank(model, config.resident_runs)
    context = PassContext(model, bank, merges_jobs=is_cuda and not deterministic)
    residency = Residency(bank, model.device, config.host_bytes, SpillDirectory(scratch_dir))
    micro_batch_tokens = config.micro_batch_tokens or (_rows_that_fill_a_gpu(model) if is_cuda else 384)
    plan = ActivationPlan(layer_costs(model), model.device, config.activation_bytes)
    steps = OptimizerSteps(residency, _fused_adamw(model, bank) if is_cuda else None)
    return PackedTrainingEngine(context, residency, micro_batch_tokens, plan, steps, shares_prefixes)


def _rows_that_fill_a_gpu(model: BaseModel) -> int:
    """As many as take about 0.3 s on an H100; with fewer rows of a small model the host's launches take longer."""
    body = sum(inputs * outputs for name, (inputs, outputs) in model.linear_shapes.items() if name != HEAD_NAME)
    return min(max(int(8192 * 3.6e9 / body), 8192), 32768) // 1024 * 1024


def _fused_adamw(model: BaseModel, bank: AdapterBank) -> UpdateAdamW:
    from openrl.training.adamw_kernels import FusedAdamW  # noqa: PLC0415  (triton is there only where CUDA is)

    return FusedAdamW(bank, model.dtype, model.device)
