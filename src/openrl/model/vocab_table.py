"""Keeps embedding tables and heads in bf16 where that loses no bit; rows are widened when they are used.

Legend: V vocab, D model dim.

Checkpoints hold bf16, the CPU computes in fp32. The tables of a small model with a large vocabulary are most of its
weights: half the memory to hold, and half to read for every generated token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

CHECKED_ROWS = 4096
"""Rows narrowed at once: what is compared stays in the caches."""


class WidenedEmbedding(nn.Module):
    """A frozen embedding over a narrower table; does to the rows what `base` does."""

    def __init__(self, base: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        base.padding_idx = None  # says where a gradient would be zero, and that the table has such a row
        self.base = base
        self.dtype = dtype

    @property
    def weight(self) -> Tensor:
        """The narrow table."""
        return self.base.weight

    def forward(self, token_ids: Tensor) -> Tensor:
        """As of an embedding whose table has the wide type."""
        rows = self.base.weight[token_ids.flatten()].to(self.dtype)
        places = torch.arange(rows.shape[0], device=rows.device).view(token_ids.shape)
        return functional_call(self.base, {"weight": rows}, (places,))


def narrow_tables(causal_lm: Any) -> None:
    """Narrow a loaded model's embedding and head, each where it loses nothing; tied ones stay one table."""
    embedding, head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    is_tied, dtype = head.weight is embedding.weight, embedding.weight.dtype
    table = narrowed(embedding.weight)
    if table is not None:
        embedding.weight = table
        causal_lm.set_input_embeddings(WidenedEmbedding(embedding, dtype))
    table = table if is_tied else narrowed(head.weight)
    if table is not None:
        head.weight = table


@torch.no_grad()
def narrowed(weight_VD: Tensor) -> nn.Parameter | None:
    """The same values in bf16; None where one of them does not fit."""
    narrow_VD = torch.empty_like(weight_VD, dtype=torch.bfloat16)
    for wide, narrow in zip(weight_VD.split(CHECKED_ROWS), narrow_VD.split(CHECKED_ROWS), strict=True):
        narrow.copy_(wide)
        if not torch.equal(narrow.to(wide.dtype), wide):
            return None
    return nn.Parameter(narrow_VD, requires_grad=False)
