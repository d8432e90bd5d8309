"""Decoder layers whose elementwise work is compiled into few kernels; products and attention stay as they are.

Each layer is traced whole. What LoraLinear and our attention do is opaque to the trace: they work on the active batch,
whose Python objects no trace should depend on. One trace serves all layers of a kind: an opaque call finds its module
by a number that is a tensor, an input like any other. See layer_stages for how the trace is cut.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule

from openrl.model.batch import Batch
from openrl.model.layer_stages import compile_stages
from openrl.model.linear_groups import GroupMember
from openrl.model.lora import LoraLinear
from openrl.telemetry.logs import get_logger

log = get_logger(__name__)

MAX_VARIANTS = 64
"""Compiled forms of one function: kinds of layers, with and without gradients, of every served model."""

AttentionFunction = Callable[..., tuple[Tensor, None]]


@torch.library.custom_op("openrl::linear", mutates_args=())
def traced_linear(x: Tensor, module: Tensor, num_outputs: int, row_stride: int) -> Tensor:
    """Stands for a linear layer in a trace; never runs."""
    raise NotImplementedError


@traced_linear.register_fake
def _(x: Tensor, module: Tensor, num_outputs: int, row_stride: int) -> Tensor:
    del module
    num_rows = x.shape[1]
    return x.new_empty_strided((1, num_rows, num_outputs), (num_rows * row_stride, row_stride, 1))


@torch.library.custom_op("openrl::attention", mutates_args=())
def traced_attention(q: Tensor, k: Tensor, v: Tensor, module: Tensor, scale: float, window: int | None) -> Tensor:
    """Stands for attention in a trace, [1, N, T, H] to [1, T, N, H]; never runs."""
    raise NotImplementedError


@traced_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, module: Tensor, scale: float, window: int | None) -> Tensor:
    del k, module, scale, window
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


class OpaqueLinear(nn.Module):
    """A linear layer that a trace does not look into."""

    number: Tensor

    def __init__(self, linear: Any, number: int) -> None:
        super().__init__()
        self.linear = linear
        self.num_outputs = int(linear.out_features)
        self.row_stride = int(linear.row_stride)
        self.register_buffer("number", torch.tensor(number), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See LoraLinear and GroupMember."""
        if torch.compiler.is_compiling():
            return traced_linear(x, self.number, self.num_outputs, self.row_stride)
        return self.linear(x)


class LayerCompiler:
    """Compiles the layers of one model; where that fails, they all run as they are, with one warning."""

    def __init__(self, attention: AttentionFunction, backend: str) -> None:
        self._attention = attention
        self._backend: Any = torch._dynamo.lookup_backend(backend)  # pyright: ignore[reportPrivateImportUsage]
        self._modules: list[Any] = []
        self._batch: Batch | None = None
        self.is_on = True
        torch._dynamo.config.recompile_limit = MAX_VARIANTS

    def compile_layers(self, layers: Iterable[Any]) -> None:
        """Replace the layers' forward methods."""
        for index, layer in enumerate(layers):
            self._make_opaque(layer)
            layer.forward = self._compiled(layer.forward, is_first=index == 0)

    def _make_opaque(self, layer: nn.Module) -> None:
        for name, module in list(layer.named_modules()):
            parent_name, _, child = name.rpartition(".")
            if isinstance(module, LoraLinear | GroupMember):
                setattr(layer.get_submodule(parent_name), child, OpaqueLinear(module, self._number(module)))
            elif hasattr(module, "layer_idx") and hasattr(module, "q_proj"):
                module.register_buffer("openrl_number", torch.tensor(self._number(module)), persistent=False)

    def _number(self, module: nn.Module) -> int:
        self._modules.append(module)
        return len(self._modules) - 1

    def _compiled(self, forward: Callable[..., Any], is_first: bool) -> Callable[..., Any]:
        traced = torch.compile(forward, backend=self._compile, fullgraph=True)

        def layer_forward(hidden: Tensor, *args: Any, openrl_batch: Batch, **kwargs: Any) -> Any:
            if not self.is_on:
                return forward(hidden, *args, openrl_batch=openrl_batch, **kwargs)
            if is_first and torch.is_grad_enabled() and not hidden.requires_grad:
                # Then the first layer is of the same kind as the others.
                hidden = hidden.detach().requires_grad_()
            _mark_rows(hidden, args, kwargs)
            before, self._batch = self._batch, openrl_batch
            try:
                return traced(hidden, *args, **kwargs)
            except TorchDynamoException as error:
                self.is_on = False
                log.warning("layers are not compiled", reason=" ".join(str(error).split())[:500])
                return forward(hidden, *args, openrl_batch=openrl_batch, **kwargs)
            finally:
                self._batch = before

        return layer_forward

    def _compile(self, traced: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        del examples
        calls = {traced_linear._opoverload: self._linear, traced_attention._opoverload: self._attend}
        return compile_stages(traced, calls, self._backend)

    def _linear(self, x: Tensor, module: Tensor, num_outputs: int, row_stride: int) -> Tensor:
        del num_outputs, row_stride
        return self._modules[int(module)](x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, module: Tensor, scale: float, window: int | None) -> Tensor:
        assert self._batch is not None, "layers run inside a pass"
        own = self._modules[int(module)]
        return self._attention(own, q, k, v, None, scale, openrl_batch=self._batch, sliding_window=window)[0]


def _mark_rows(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Say that the number of rows varies."""
    for value in (hidden, *args, *kwargs.values()):
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Tensor) and each.dim() > 1 and not hasattr(each, "_dynamo_dynamic_indices"):
                torch._dynamo.maybe_mark_dynamic(each, 1)
