"""One training example as engines see it: tokens and the typed inputs of its loss."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openrl.protocol.custom_loss import CustomLoss

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]
DenseArray = NDArray[np.float32] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SparseCsr:
    """A 2-D tensor of which only listed entries are sent (tinker-api §4.3).

    Unlisted entries are padding: 0.0 in weights, "no target here" in target ids.
    """

    values: DenseArray  # [nnz]
    crow_indices: Int64Array  # [num_rows + 1]
    col_indices: Int64Array  # [nnz]
    shape: tuple[int, int]


LossInput = DenseArray | SparseCsr


@dataclass(frozen=True, slots=True)
class ProvenanceSpan:
    """A stretch of a datum that came from one sampled sequence, or from its prompt."""

    sequence_id: str
    offset: int
    length: int
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Datum:
    """Tokens of one sequence and what its loss needs, each entry aligned with the tokens.

    `target_tokens[t]` is what the model should say after `tokens[: t + 1]`; [N] or [N, K].
    """

    tokens: Int32Array  # [N]
    loss_inputs: dict[str, LossInput]
    model_input_spans: tuple[ProvenanceSpan, ...] = ()
    loss_input_spans: tuple[ProvenanceSpan, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in tokens."""
        return int(self.tokens.shape[0])


@dataclass(frozen=True, slots=True)
class ForwardBackwardInput:
    """The decoded body of `forward_backward` (tinker-api §4.1)."""

    run_id: str
    seq_id: int
    data: tuple[Datum, ...]
    loss_fn: str
    loss_fn_config: dict[str, float | str] = field(default_factory=dict[str, float | str])
    is_forward_only: bool = False
    custom_loss: CustomLoss | None = None  # what `loss_id` names, where loss_fn is "custom"; not part of the body
