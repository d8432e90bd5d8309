"""Keeps the stream that all layers add to in fp32, where what they compute is narrower.

Every layer's sum is else rounded to the compute type, and rounding differently in trainer and sampler is most of what
their log-probabilities differ by. Norms read the wide stream and give what products take; nothing else sees it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from openrl.telemetry.logs import get_logger

_log = get_logger(__name__)


class _NarrowNorm(nn.Module):
    """A norm whose result is rounded to the compute type, once."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = norm
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).to(self._dtype)


def widen_residual(body: Any, dtype: torch.dtype, linears: tuple[type[nn.Module], ...]) -> None:
    """Have the layers of a model whose products are `linears` add in fp32; others stay as they are, with a warning."""
    strange = {type(module).__name__ for module in body.layers.modules() if _is_strange(module, linears)}
    if strange:
        _log.warning("the residual stream stays narrow", modules=sorted(strange))
        return
    for name, module in list(body.named_modules()):
        if _is_norm(module):
            parent_name, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent_name), child, _NarrowNorm(module, dtype))
        elif type(module).__name__.endswith("RotaryEmbedding"):  # its tables take the type of what it is given

            def narrow(_: nn.Module, __: Any, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return tuple(table.to(dtype) for table in tables)

            module.register_forward_hook(narrow)

    def widen(_: nn.Module, __: Any, hidden: Tensor) -> Tensor:
        return hidden.float()

    body.embed_tokens.register_forward_hook(widen)


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")


def _is_strange(module: nn.Module, linears: tuple[type[nn.Module], ...]) -> bool:
    """Whether it has weights of its own and might not take fp32."""
    has_weights = any(True for _ in module.parameters(recurse=False))
    return has_weights and not _is_norm(module) and not isinstance(module, linears)
