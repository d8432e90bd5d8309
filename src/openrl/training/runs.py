"""A training run's own tensors: fp32 master weights, Adam moments, pending gradients."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.errors import RequestFailed
from openrl.model.adapter import AdapterWeights, LoraPair, adapted_names, initial_adapter
from openrl.model.peft_files import PREFIX
from openrl.protocol.runs import RunSpec
from openrl.training.base import RunState
from openrl.training.gradients import FlatLayout

BUFFERS = ("weights_P", "exp_avg_P", "exp_avg_sq_P", "gradients_P")


class TrainingRun:
    """One adapter and its optimizer as flat fp32 buffers, all on one device.

    `gradients_P` is None when nothing was added since the last step. A fresh optimizer has zero moments;
    Dimuon has the first one only.
    """

    def __init__(self, spec: RunSpec, layout: FlatLayout, weights_P: Float[Tensor, " P"]) -> None:
        self.spec = spec
        self.layout = layout
        self.weights_P = weights_P
        self.exp_avg_P = torch.zeros_like(weights_P)
        self.exp_avg_sq_P: Tensor | None = torch.zeros_like(weights_P) if spec.optimizer == "adamw" else None
        self.gradients_P: Tensor | None = None
        self.num_steps = 0

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers().values())

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that exist, by attribute name."""
        named = {name: getattr(self, name) for name in BUFFERS}
        return {name: buffer for name, buffer in named.items() if buffer is not None}

    def set_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Put buffers in place of the present ones, as moved to another device or read from disk."""
        for name, buffer in buffers.items():
            setattr(self, name, buffer)

    def drop_buffers(self) -> None:
        """Free the memory; `set_buffers` must follow before the run is used."""
        empty = torch.zeros(0)
        self.set_buffers(dict.fromkeys(self.buffers(), empty))

    def adapter(self) -> AdapterWeights:
        """The master weights as factors; views, not copies."""
        return AdapterWeights(self.spec.rank, self.layout.pairs(self.weights_P))

    def add_gradients(self, staged_P: Float[Tensor, " P"]) -> None:
        """Add one job's gradients to what waits for the next step; takes the tensor over."""
        if self.gradients_P is None:
            self.gradients_P = staged_P
        else:
            self.gradients_P.add_(staged_P)


def create_run(spec: RunSpec, shapes: Mapping[str, tuple[int, int]], state: RunState | None) -> TrainingRun:
    """The run on the host, from its state or freshly initialised from its seed.

    `shapes`: see BaseModel.linear_shapes. Raises RequestFailed where the state is not of this run's shape.
    """
    layout = FlatLayout({name: shapes[name] for name in adapted_names(spec, shapes)}, spec.rank)
    if state is None:
        return TrainingRun(spec, layout, layout.flatten(initial_adapter(shapes, spec).pairs))
    run = TrainingRun(spec, layout, _flatten(layout, state.adapter))
    load_optimizer(run, state.optimizer)
    if state.gradients:
        run.gradients_P = _flatten(layout, state.gradients)
    return run


def load_weights(run: TrainingRun, state: RunState, with_optimizer: bool) -> TrainingRun:
    """The run on the host with the state's weights, and its moments or none; pending gradients are gone."""
    loaded = TrainingRun(run.spec, run.layout, _flatten(run.layout, state.adapter))
    if with_optimizer:
        load_optimizer(loaded, state.optimizer)
    return loaded


def load_optimizer(run: TrainingRun, optimizer: Mapping[str, Any]) -> None:
    """Set moments and step count from a RunState's `optimizer`; an empty one leaves a fresh optimizer."""
    if not optimizer:
        return
    squares = _under("exp_avg_sq.", optimizer)
    if bool(squares) != (run.exp_avg_sq_P is not None):
        held = "adamw" if squares else "dimuon"
        raise RequestFailed(f"the state holds moments of {held}; the run is trained by {run.spec.optimizer}", "user")
    run.exp_avg_P = _flatten(run.layout, _under("exp_avg.", optimizer))
    if run.exp_avg_sq_P is not None:
        run.exp_avg_sq_P = _flatten(run.layout, squares)
    run.num_steps = int(optimizer["num_steps"])


def export_state(run: TrainingRun) -> RunState:
    """A copy on the host; names as in PEFT files, moments with `exp_avg.` or `exp_avg_sq.` before them."""
    optimizer: dict[str, Any] = {"num_steps": torch.tensor(run.num_steps)}
    for kind, flat_P in (("exp_avg.", run.exp_avg_P), ("exp_avg_sq.", run.exp_avg_sq_P)):
        if flat_P is None:
            continue
        optimizer.update({kind + name: tensor for name, tensor in named_factors(run.layout, flat_P).items()})
    gradients = {} if run.gradients_P is None else named_factors(run.layout, run.gradients_P)
    return RunState(named_factors(run.layout, run.weights_P), optimizer, gradients)


def named_factors(layout: FlatLayout, flat_P: Float[Tensor, " P"]) -> dict[str, Tensor]:
    """Copies on the host of the factors in a flat buffer; names as in PEFT files."""
    named: dict[str, Tensor] = {}
    for name, pair in layout.pairs(flat_P.to("cpu")).items():
        # Clones: the run goes on changing its buffers, and safetensors refuses tensors that share memory.
        named[f"{PREFIX}{name}.lora_A.weight"] = pair.a_RD.clone()
        named[f"{PREFIX}{name}.lora_B.weight"] = pair.b_OR.clone()
    return named


def _flatten(layout: FlatLayout, named: Mapping[str, Tensor]) -> Float[Tensor, " P"]:
    """The inverse of `named_factors`; raises RequestFailed naming what does not fit."""
    pairs: dict[str, LoraPair] = {}
    for name, (inputs, outputs) in layout.shapes.items():
        a_RD = _take(named, f"{PREFIX}{name}.lora_A.weight", (layout.rank, inputs))
        pairs[name] = LoraPair(a_RD, _take(named, f"{PREFIX}{name}.lora_B.weight", (outputs, layout.rank)))
    if len(named) != 2 * len(pairs):
        raise RequestFailed(f"the state holds {len(named)} tensors; the run trains {2 * len(pairs)}", "user")
    return layout.flatten(pairs)


def _take(named: Mapping[str, Tensor], name: str, shape: tuple[int, int]) -> Tensor:
    if name not in named:
        raise RequestFailed(f"the state lacks {name}, which the run trains", "user")
    if tuple(named[name].shape) != shape:
        raise RequestFailed(f"{name} has shape {tuple(named[name].shape)}; the run's is {shape}", "user")
    return named[name]


def _under(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
