"""The training engine as the worker sees it. No torch here: a fake engine needs none.

An engine is used from one thread. `forward_backward` is a generator: it yields between
micro-batches so that the worker can give the device to sampling, and returns the results.
Meanwhile everything may be done with runs that are not in the pass, also another pass.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from openrl.errors import RequestFailed
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
from openrl.protocol.runs import RunSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdamParams:
    """AdamW with decoupled weight decay, as in torch.optim.AdamW (tinker-api §2.2)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0  # <= 0: no clipping


@dataclass(frozen=True, slots=True)
class DimuonParams:
    """Orthogonalised momentum, see docs/optimizers.md."""

    learning_rate: float
    beta1: float = 0.9
    grad_clip_norm: float = 0.0  # <= 0: no clipping


OptimizerParams = AdamParams | DimuonParams


@dataclass(frozen=True, slots=True)
class OptimStep:
    """One optimizer step of one run; the parameters are of the run's family."""

    run_id: str
    params: OptimizerParams


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything of a run that training changes; tensors are on the host, names are the engine's.

    `adapter`: LoRA weights by PEFT tensor name (fp32). `optimizer`: moments and step counts.
    `gradients`: what forward_backward added since the last step; empty if nothing did.
    """

    adapter: dict[str, Any]  # name -> torch.Tensor
    optimizer: dict[str, Any]
    gradients: dict[str, Any]


class AdapterCopy(Protocol):
    """A run's adapter as it was at one moment."""

    @property
    def adapter(self) -> Any:
        """AdapterWeights on the device."""
        ...

    def to_host(self) -> RunState:
        """The same on the host, without optimizer and gradients; from any thread."""
        ...


class TrainingEngine(Protocol):
    """Trains many runs over one copy of a base model."""

    def open_run(self, run: RunSpec, state: RunState | None) -> None:
        """Have the run: from its state, or freshly initialised from its seed."""
        ...

    def close_run(self, run_id: str) -> None:
        """Forget the run; unknown runs are fine."""
        ...

    def export_run(self, run_id: str) -> RunState:
        """A copy of the run's state that later training does not change."""
        ...

    def copy_adapter(self, run_id: str) -> AdapterCopy:
        """What a sampler needs of the run as it is now; quick, and nothing leaves the device."""
        ...

    def load_weights(self, run_id: str, state: RunState, with_optimizer: bool) -> None:
        """Replace the adapter; moments come along or start from zero. Pending gradients go.

        Moments of another optimizer family than the run's are refused.
        """
        ...

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[ForwardBackwardResult | RequestFailed]]:
        """Run the jobs packed together; one result per job, in order.

        Yields the rows of each micro-batch after it. `max_rows` is asked before each how many it may have, where that
        is less than the engine's own measure; what cannot be divided runs whole. It moves no bit of the results where
        neighbours do not.

        A job that fails (non-finite loss or gradient) leaves its run as it was and does not
        touch the others. Forward-only jobs change nothing.
        """
        ...

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        """Step the runs, clear their gradients; metrics per step (`grad_norm`: before clipping).

        A step whose gradient is not finite fails, leaves weights and optimizer as they were, and drops the gradient.
        """
        ...

    def drop_gradients(self, run_id: str) -> None:
        """Forget what forward_backward added since the last step."""
        ...


def finish_pass(steps: Generator[int, None, T]) -> T:
    """Run a `forward_backward` to its end; its results."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
