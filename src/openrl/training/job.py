"""What the engine knows of one forward_backward request while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from openrl.errors import InvalidRequest, RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.custom_loss import custom_loss_spec
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.losses import LossSpec, resolve_loss, resolve_loss_settings
from openrl.protocol.results import ForwardBackwardResult
from openrl.training.evaluation import Evaluation, LossCall, summarise
from openrl.training.gradients import StagedGradients
from openrl.training.loss_inputs import Targets, check_targets, may_have_gradient, read_targets
from openrl.training.prefix_groups import PrefixGroup, group_datums, row_keys


@dataclass(slots=True)
class Job:
    """One request in progress; `error` is set once and ends it."""

    input: ForwardBackwardInput
    call: LossCall
    targets: list[Targets]
    needs_grad_M: list[NDArray[np.bool_]]  # per datum, see may_have_gradient
    groups: list[PrefixGroup]  # the datums in order, those that begin alike together
    staged: StagedGradients | None = None  # None: forward only
    evaluations: dict[int, Evaluation] = field(default_factory=dict[int, Evaluation])
    error: RequestFailed | None = None

    def fail(self, datum: str, error: RequestFailed | InvalidRequest) -> None:
        """Record the first failure; what was staged is dropped."""
        if self.error is None:
            category = error.category if isinstance(error, RequestFailed) else "user"
            self.error = RequestFailed(f"{datum}: {error}", category)
            self.staged = None

    def result(self) -> ForwardBackwardResult | RequestFailed:
        """Outputs and metrics in datum order, or why there are none."""
        if self.error is not None:
            return self.error
        evaluations = [self.evaluations[index] for index in range(len(self.input.data))]
        outputs = tuple(evaluation.outputs for evaluation in evaluations)
        return ForwardBackwardResult(outputs, summarise(self.call, evaluations))


class GradientStage:
    """The sink of a backward pass: sends each segment's gradients to its job's staging area."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def add(self, job: int, name: str, da_RD: Float[Tensor, "R D"], db_OR: Float[Tensor, "O R"]) -> None:
        """See model.lora.GradientSink; gradients of a job that has failed are dropped."""
        staged = self._jobs[job].staged
        if staged is not None:
            staged.add(name, da_RD, db_OR)

    def addresses(self) -> list[Mapping[str, tuple[int, int]]]:
        """See model.grouped_lora.StagedSink; none for a job that has failed."""
        return [{} if job.staged is None else job.staged.addresses() for job in self._jobs]


def open_job(model: BaseModel, request: ForwardBackwardInput, max_group_rows: int) -> Job | RequestFailed:
    """The job, or its failure where its inputs do not fit the loss or the model.

    `max_group_rows`: see group_datums; 0 computes every datum by itself.
    """
    try:
        call = _loss_call(request)
    except InvalidRequest as error:
        return RequestFailed(str(error), "user")
    targets: list[Targets] = []
    needs_grad_M: list[NDArray[np.bool_]] = []
    for index, datum in enumerate(request.data):
        try:
            targets.append(_read(model, datum, call.spec))
            needs_grad_M.append(may_have_gradient(datum, targets[-1], call.spec))
        except InvalidRequest as error:
            return RequestFailed(f"datum {index}: {error}", "user")
    keys = [row_keys(datum.tokens, each.by_token()) for datum, each in zip(request.data, targets, strict=True)]
    return Job(request, call, targets, needs_grad_M, group_datums(keys, max_group_rows))


def _loss_call(request: ForwardBackwardInput) -> LossCall:
    if request.custom_loss is not None:
        return LossCall(custom_loss_spec(request.custom_loss), {}, request.custom_loss)
    return LossCall(resolve_loss(request.loss_fn), resolve_loss_settings(request.loss_fn, request.loss_fn_config))


def _read(model: BaseModel, datum: Datum, spec: LossSpec) -> Targets:
    """The datum's targets; one bad index would end the pass for every job in it, so all are checked here."""
    if not 0 < datum.num_tokens <= model.context_length:
        raise InvalidRequest(f"{datum.num_tokens} tokens; there must be 1 to {model.context_length}")
    low, high = int(np.min(datum.tokens)), int(np.max(datum.tokens))
    if low < 0 or high >= model.vocab_size:
        raise InvalidRequest(f"token ids within [{low}, {high}] are outside the vocabulary of {model.vocab_size}")
    targets = read_targets(datum)
    check_targets(targets, spec, model.vocab_size)
    missing = [name for name in spec.required if name not in datum.loss_inputs]
    if missing:
        raise InvalidRequest(f"{spec.name} needs loss_fn_inputs {', '.join(missing)}")
    return targets
