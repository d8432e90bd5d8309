"""Decoder layers that may forget what they computed, and compute it again in the backward pass."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from openrl.model.batch import Batch
from openrl.model.lora import ActiveBatch


class _Layer(Protocol):
    forward: Callable[..., Any]


def make_recomputable(layers: list[_Layer], active: ActiveBatch) -> None:
    """Have the first `Batch.recomputed_layers` of a batch keep their input only; the numbers stay the same bits."""
    for index, layer in enumerate(layers):
        layer.forward = _recomputable(layer.forward, index, active)


def _recomputable(forward: Callable[..., Any], index: int, active: ActiveBatch) -> Callable[..., Any]:
    def layer_forward(*args: Any, openrl_batch: Batch, **kwargs: Any) -> Any:
        if index >= openrl_batch.recomputed_layers or not torch.is_grad_enabled():
            return forward(*args, openrl_batch=openrl_batch, **kwargs)

        def run(*again: Any) -> Any:
            # The backward pass comes when the model works on no batch any more.
            with active.using(openrl_batch):
                return forward(*again, openrl_batch=openrl_batch, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

    return layer_forward
