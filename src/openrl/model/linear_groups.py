"""Linears that read the same input, computed as one product: q, k and v of an attention; gate and up of an MLP.

Legend: T packed rows, D inputs, O outputs of all linears of a group.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openrl.model.batch import Segment
from openrl.model.lora import ActiveBatch

MANY_ROWS = 2048
"""From here on one product a linear is faster: on an H100, 8,192 rows of gate and up (2560 inputs, 2 x 9728 outputs)
take 1.19 ms as one, 1.09 ms as two; q, k and v the same either way. Few rows read the weights faster as one."""

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """The names of linears that read the same input, and their sizes; see BaseModel.linear_shapes."""

    names: tuple[str, ...]
    num_inputs: int
    outputs: tuple[int, ...]


class GroupAdapters(ABC):
    """Adapters that compute a group's base and LoRA products together."""

    @abstractmethod
    def product(self, fused: "FusedLinear", x_TD: Tensor, segments: tuple[Segment, ...]) -> tuple[Tensor, ...]:
        """The outputs of the group's linears, each [T, O of it]."""


class FusedLinear:
    """The frozen weights of a group, one below the other in one tensor.

    The first linear of a group to be called computes all; what is not its own waits for the others, which must come
    with the same input.
    """

    def __init__(self, linears: Sequence[nn.Linear], group: LinearGroup, active: ActiveBatch) -> None:
        self.group = group
        self._active = active
        self.weight_OD, self.bias_O = _concatenated(linears, group.outputs)
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def part(self, x: Tensor, index: int) -> Tensor:
        """[1, T, D] -> [1, T, O] of the index-th linear."""
        if self._input is not x or index not in self._waiting:
            parts = self._parts(x.view(-1, x.shape[-1]))
            self._input, self._waiting = x, dict(enumerate(parts))
        own = self._waiting.pop(index)
        if not self._waiting:
            self._input = None
        return own.view(*x.shape[:-1], -1)

    def base(self, x_TD: Tensor) -> Tensor:
        """x W^T + bias of all linears, [T, O]."""
        needs_grad = torch.is_grad_enabled() and x_TD.requires_grad
        if x_TD.shape[0] < MANY_ROWS or self.bias_O is not None or len(self.group.outputs) == 1 or needs_grad:
            return nn.functional.linear(x_TD, self.weight_OD, self.bias_O)
        y_TO = x_TD.new_empty(x_TD.shape[0], self.weight_OD.shape[0])
        parts = zip(self.weight_OD.split(self.group.outputs), y_TO.split(self.group.outputs, 1), strict=True)
        for weight_OD, part_TO in parts:
            torch.mm(x_TD, weight_OD.t(), out=part_TO)
        return y_TO

    def input_gradient(self, grads: tuple[Tensor, ...]) -> Tensor:
        """The sum of g W over the linears, [T, D]."""
        weights = self.weight_OD.split(self.group.outputs)
        dx_TD = grads[0] @ weights[0]
        for g_TO, weight_OD in zip(grads[1:], weights[1:], strict=True):
            dx_TD.addmm_(g_TO, weight_OD)
        return dx_TD

    def _parts(self, x_TD: Tensor) -> tuple[Tensor, ...]:
        adapters, segments = self._active.adapters, self._active.segments
        if isinstance(adapters, GroupAdapters):
            return adapters.product(self, x_TD, segments)
        parts = self.base(x_TD).split(self.group.outputs, 1)
        if adapters is None:
            return parts
        named = zip(self.group.names, parts, strict=True)
        return tuple(adapters.apply(name, x_TD, y_TO, segments) for name, y_TO in named)


class GroupMember(nn.Module):
    """Stands where one linear of a group stood; its weight is a view, and so are its outputs, `row_stride` apart."""

    def __init__(self, base: nn.Linear, fused: FusedLinear, index: int) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.row_stride = sum(fused.group.outputs)
        self._fused = fused
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, D] -> [1, T, O], as the transformers modules around it have it."""
        return self._fused.part(x, self._index)


def fuse_linears(causal_lm: Any, projections: Sequence[str], active: ActiveBatch) -> list[LinearGroup]:
    """Put a GroupMember in place of every projection; returns the groups in model order.

    Linears whose siblings are missing, or of another kind, are groups of their own.
    """
    groups: list[LinearGroup] = []
    parents = dict.fromkeys(name.rpartition(".")[0] for name, _ in causal_lm.named_modules())
    for parent_name in parents:
        parent = causal_lm.get_submodule(parent_name)
        found = [each for each in projections if isinstance(getattr(parent, each, None), nn.Linear)]
        for members in _split(parent, found):
            linears = [getattr(parent, each) for each in members]
            names = tuple(f"{parent_name}.{each}" if parent_name else each for each in members)
            outputs = tuple(int(each.out_features) for each in linears)
            group = LinearGroup(names, int(linears[0].in_features), outputs)
            fused = FusedLinear(linears, group, active)
            for index, (member, linear) in enumerate(zip(members, linears, strict=True)):
                setattr(parent, member, GroupMember(linear, fused, index))
            groups.append(group)
    return groups


def _split(parent: Any, found: Sequence[str]) -> list[tuple[str, ...]]:
    """The projections of one module in groups."""
    whole = [members for members in FUSED if set(members) <= set(found) and _are_alike(parent, members)]
    grouped = {member for members in whole for member in members}
    leads = {members[0]: members for members in whole}
    return [leads.get(each, (each,)) for each in found if each in leads or each not in grouped]


def _are_alike(parent: Any, members: Sequence[str]) -> bool:
    linears: list[nn.Linear] = [getattr(parent, member) for member in members]
    kinds = {(each.in_features, each.weight.dtype, each.weight.device, _bias(each) is None) for each in linears}
    return len(kinds) == 1


def _bias(linear: nn.Linear) -> Tensor | None:
    return linear.bias


@torch.no_grad()
def _concatenated(linears: Sequence[nn.Linear], outputs: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases in one tensor each; those of the linears become views, and the old ones are given up."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight_OD = torch.cat([each.weight for each in linears])
    biases = [bias_O for bias_O in map(_bias, linears) if bias_O is not None]
    bias_O = torch.cat(biases) if biases else None
    for linear, part_OD in zip(linears, weight_OD.split(outputs), strict=True):
        linear.weight = nn.Parameter(part_OD, requires_grad=False)
    if bias_O is not None:
        for linear, part_O in zip(linears, bias_O.split(outputs), strict=True):
            linear.bias = nn.Parameter(part_O, requires_grad=False)
    return weight_OD, bias_O
