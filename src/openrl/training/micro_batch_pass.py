"""Runs one micro-batch: forward pass, losses, and the backward pass into the jobs' staging areas.

Legend: T packed rows, D model dim, M head rows of one call, K targets of one row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32
from torch import Tensor

from openrl.errors import InvalidRequest, RequestFailed
from openrl.model.adapter import HEAD_NAME
from openrl.model.adapter_banks import training_adapters
from openrl.model.base_model import BaseModel
from openrl.model.batch import Adapters
from openrl.model.head import target_logprobs
from openrl.model.lora import AdapterBank
from openrl.model.transfers import to_device
from openrl.training.evaluation import evaluate
from openrl.training.gradients import all_finite
from openrl.training.head_calls import HeadCall, plan_head
from openrl.training.job import GradientStage, Job
from openrl.training.micro_batch import PackedDatum, PackedGroup, build_batch, merge_jobs
from openrl.training.packing import Place
from openrl.training.prefix_groups import PrefixGroup


@dataclass(frozen=True, slots=True)
class PassContext:
    """What every pass of an engine works with."""

    model: BaseModel
    bank: AdapterBank
    merges_jobs: bool  # see micro_batch.merge_jobs: faster, and gradients are not bit-exact


def run_micro_batch(
    context: PassContext,
    jobs: Sequence[Job],
    places: Sequence[Place],
    slots: Mapping[str, int],
    recomputed_layers: int = 0,
) -> None:
    """Evaluate the groups at `places` and stage their gradients; failures end their job only.

    The jobs at `places` are all forward-only or none. `slots`: adapter slot of each run. `recomputed_layers`: see
    Batch.
    """
    with_gradient = jobs[places[0].job].staged is not None
    model, bank = context.model, context.bank
    adapters = training_adapters(bank, GradientStage(jobs), model.device) if with_gradient else bank
    groups = [_packed(jobs[place.job], place, bank, slots) for place in places]
    with torch.set_grad_enabled(with_gradient):
        batch = build_batch(model, groups, adapters, context.merges_jobs, recomputed_layers)
        calls = plan_head(model, groups)  # before the body's launches, which its copies must not wait for
        hidden_TD = model.hidden(batch)
        # The head's backward passes run into this leaf, call by call in datum order; then the body's runs once.
        leaf_TD = hidden_TD.detach().requires_grad_(with_gradient)
        for call in calls:
            _run_head(context, adapters, jobs, call, leaf_TD)
    _evaluate_without_targets(jobs, groups)
    if with_gradient:
        if leaf_TD.grad is not None and hidden_TD.requires_grad:
            hidden_TD.backward(leaf_TD.grad)
        _fail_overflowed(context, jobs, places, slots)


def _packed(job: Job, place: Place, bank: AdapterBank, slots: Mapping[str, int]) -> PackedGroup:
    slot = slots[job.input.run_id]
    group = job.groups[place.group]
    datums = (PackedDatum(n, job.input.data[n], job.targets[n], job.needs_grad_M[n]) for n in group.datums)
    trains_head = bank.factors(slot, HEAD_NAME) is not None
    return PackedGroup(place.job, slot, trains_head, group.prefix, tuple(datums))


def _run_head(context: PassContext, adapters: Adapters, jobs: Sequence[Job], call: HeadCall, leaf_TD: Tensor) -> None:
    """Log-probabilities and losses of one head call; with gradient, adds to the leaf's."""
    hidden_MD = leaf_TD.index_select(0, call.rows_M)
    segments = merge_jobs(call.segments) if context.merges_jobs else call.segments
    logprobs_MK = target_logprobs(context.model, hidden_MD, call.targets_MK, adapters, segments, call.needs_grad_M)
    host_MK = logprobs_MK.detach().cpu()
    gradient_MK = torch.zeros_like(host_MK)
    for each in call.datums:
        gradient = _evaluate(jobs[each.job], each.packed, host_MK[each.rows_M])
        if gradient is not None:
            gradient_MK[each.rows_M] += gradient
    if logprobs_MK.requires_grad:
        logprobs_MK.backward(to_device(gradient_MK, logprobs_MK.device))


def _evaluate(job: Job, packed: PackedDatum, logprobs_MK: Float32[Tensor, "M K"]) -> Float32[Tensor, "M K"] | None:
    """The gradient of the datum's log-probabilities; None when forward only or failed."""
    with_gradient = job.staged is not None
    try:
        evaluation = evaluate(job.call, packed.datum, packed.targets, logprobs_MK, with_gradient)
    except (InvalidRequest, RequestFailed) as error:
        job.fail(f"datum {packed.number}", error)
        return None
    job.evaluations[packed.number] = evaluation
    return evaluation.gradient_MK


def _evaluate_without_targets(jobs: Sequence[Job], groups: Sequence[PackedGroup]) -> None:
    """Outputs of datums that ask for no log-probability at all."""
    for group in groups:
        for packed in group.datums:
            if not len(packed.targets.rows_M):
                num_targets = packed.targets.ids_MK.shape[1]
                with torch.enable_grad():
                    _evaluate(jobs[group.job], packed, torch.zeros(0, num_targets))


def _fail_overflowed(
    context: PassContext, jobs: Sequence[Job], places: Sequence[Place], slots: Mapping[str, int]
) -> None:
    """End the jobs whose staged gradients are not finite after this micro-batch."""
    indices = [index for index in dict.fromkeys(place.job for place in places) if jobs[index].staged is not None]
    are_finite = all_finite([staged for index in indices if (staged := jobs[index].staged) is not None])
    for index, is_finite in zip(indices, are_finite, strict=True):
        job = jobs[index]
        if not is_finite:
            numbers = [number for place in places if place.job == index for number in job.groups[place.group].datums]
            numbers = _overflowing_alone(context, job, numbers, slots) or numbers
            error = RequestFailed("the gradient is not finite; nothing was added to the run", "server")
            job.fail(f"datum {' or '.join(map(str, numbers))}", error)


def _overflowing_alone(context: PassContext, job: Job, numbers: Sequence[int], slots: Mapping[str, int]) -> list[int]:
    """The first datum whose gradient is not finite without the others; none where only their sum is not."""
    for number in numbers if len(numbers) > 1 else ():
        assert job.staged is not None
        group = PrefixGroup(number, 1, 0, job.input.data[number].num_tokens)
        alone = replace(job, groups=[group], staged=job.staged.emptied(), evaluations={})
        run_micro_batch(context, [alone], [Place(0, 0)], slots)
        if alone.error is not None:
            return [number]
    return []
