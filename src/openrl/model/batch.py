"""What one forward pass works on: packed tokens, which rows belong together, how they attend.

Legend: T packed rows, D model dim, N query heads, K key-value heads, H head dim, R rank, S slots.
"""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int64
from torch import Tensor

BASE_SLOT = -1
"""The slot of rows that use no adapter."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one sequence.

    A segment with a `parent` goes on where that one ends: sequences that begin alike have their common rows
    computed once. A parent has no parent itself, and its children follow it without others in between.
    """

    start: int  # first row
    length: int  # rows
    slot: int = BASE_SLOT  # adapter slot in the bank
    job: int = 0  # whose gradients these rows feed (training)
    parent: int = -1  # index of the segment that holds the rows before these; -1: there are none


class Attention(Protocol):
    """Attention over the packed rows of one forward pass; knows the segments and any KV cache."""

    def attend(
        self,
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """Causal attention of every row within its own sequence; padding rows get zeros.

        `window`: a row sees at most this many tokens, itself included; None: all before it.
        """
        ...


class Adapters(Protocol):
    """Adds every row's own LoRA product to the output of a linear layer."""

    def apply(
        self,
        name: str,
        x_TD: Float[Tensor, "T D"],
        y_TO: Float[Tensor, "T O"],
        segments: tuple[Segment, ...],
    ) -> Float[Tensor, "T O"]:
        """`y + scale * (x A^T) B^T` with the A and B of each row's slot; `name`: see BaseModel.linear_shapes."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows [0, sum of lengths) are tokens in segment order; rows beyond are padding.

    On CPU the number of rows is a multiple of ROW_MULTIPLE: matrix products then give each row the
    same bits whatever the other rows are.
    """

    token_ids_T: Int64[Tensor, " T"]
    position_ids_T: Int64[Tensor, " T"]
    segments: tuple[Segment, ...]
    attention: Attention
    adapters: Adapters | None = None
    recomputed_layers: int = 0  # decoder layers, from the first, that keep no activations for the backward pass


ROW_MULTIPLE = 8
