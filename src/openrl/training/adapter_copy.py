"""A run's adapter as it was at one moment: on the device at once, on the host when a file is written."""

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.model.adapter import AdapterWeights
from openrl.training.base import RunState
from openrl.training.runs import TrainingRun, named_factors


class AdapterCopy:
    """Copied by one launch where the run is; later training does not change it."""

    def __init__(self, run: TrainingRun) -> None:
        self._layout = run.layout
        self._weights_P = run.weights_P.clone()
        self._copied: torch.cuda.Event | None = None
        if self._weights_P.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def adapter(self) -> AdapterWeights:
        """The factors, views of the copy."""
        return AdapterWeights(self._layout.rank, self._layout.pairs(self._weights_P))

    def to_host(self) -> RunState:
        """The same without optimizer and gradients. From any thread: what the device computes meanwhile goes on."""
        return RunState(named_factors(self._layout, self._on_host()), {}, {})

    def _on_host(self) -> Float[Tensor, " P"]:
        if self._copied is None:
            return self._weights_P
        stream = torch.cuda.Stream(self._weights_P.device)
        stream.wait_event(self._copied)
        with torch.cuda.stream(stream):
            host_P = torch.empty(self._weights_P.shape, pin_memory=True)
            host_P.copy_(self._weights_P, non_blocking=True)
        stream.synchronize()
        return host_P
