"""Buffers of the decode loop at fixed addresses, on the device and on the host.

Legend: R rows of the buffers, B rows of a bucket, P pages of a sequence, K steps, V vocab.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openrl.sampling.batcher import Slice
from openrl.sampling.burst import MAX_STEPS
from openrl.sampling.choice import GREEDY, ChoosePlain
from openrl.sampling.decode_loop import StepTokens
from openrl.sampling.sequence import Sequence as SampledSequence


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """What the rows of a step begin with."""

    tokens: Sequence[int]
    lengths: Sequence[int]  # of the row's sequence up to this token
    blocks: Sequence[Sequence[int]]
    num_tokens: Sequence[int]  # that the row takes

    @staticmethod
    def of_sequences(sequences: Sequence[SampledSequence], num_tokens: Sequence[int]) -> "DecodeRows":
        """A row for the last token of each."""
        return DecodeRows(
            tokens=[sequence.tokens[-1] for sequence in sequences],
            lengths=[len(sequence.tokens) for sequence in sequences],
            blocks=[sequence.blocks for sequence in sequences],
            num_tokens=num_tokens,
        )

    @staticmethod
    def of_slices(slices: Sequence[Slice]) -> "DecodeRows":
        """A row for every token of each."""
        places = [(step.sequence, step.start + index) for step in slices for index in range(step.length)]
        return DecodeRows(
            tokens=[sequence.tokens[at] for sequence, at in places],
            lengths=[at + 1 for _, at in places],
            blocks=[sequence.blocks for sequence, _ in places],
            num_tokens=[1] * len(places),
        )


class DecodeState:
    """Buffers at fixed addresses: what a step reads and what it leaves for the next one."""

    def __init__(self, num_rows: int, num_pages: int, vocab: int, device: torch.device) -> None:
        rows, is_cuda = num_rows, device.type == "cuda"
        self._host = _HostRows(rows, num_pages, is_pinned=is_cuda)
        self._events = [torch.cuda.Event() for _ in range(MAX_STEPS)] if is_cuda else []  # a step's tokens are here
        self.tokens_R = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lengths_R = torch.zeros(rows, dtype=torch.int32, device=device)  # with the current token; 0: not in use
        self.tables_RP = torch.zeros(rows, num_pages, dtype=torch.int32, device=device)
        self.left_R = torch.zeros(rows, dtype=torch.int32, device=device)  # tokens that the row takes in this burst
        self.heat_R = torch.ones(rows, dtype=torch.float32, device=device)
        self.uniform_KR = torch.zeros(MAX_STEPS, rows, dtype=torch.float64, device=device)
        self.at_1 = torch.zeros(1, dtype=torch.int64, device=device)  # steps done
        self.tokens_KR = torch.zeros(MAX_STEPS, rows, dtype=torch.int64, device=device)
        self.logprobs_KR = torch.zeros(MAX_STEPS, rows, dtype=torch.float32, device=device)
        self._vocab = vocab

    @cached_property
    def logits(self) -> Float[Tensor, "R V"]:
        """Made when the first row asks for more than a plain choice."""
        return torch.zeros(self.tokens_R.shape[0], self._vocab, dtype=torch.float32, device=self.tokens_R.device)

    def fill(
        self,
        rows: DecodeRows,
        uniform_KB: np.ndarray[tuple[int, int], np.dtype[np.float64]],
        heat_B: np.ndarray[tuple[int], np.dtype[np.float32]],
    ) -> None:
        """Take up these rows, in few copies that wait for nothing."""
        host, num_rows, num_steps = self._host, len(rows.tokens), uniform_KB.shape[0]
        host.fill(rows)
        host.uniform_KR[:num_steps, :num_rows] = torch.from_numpy(uniform_KB)
        host.heat_R[:num_rows] = torch.from_numpy(heat_B)
        for device, pinned in (
            (self.tokens_R, host.tokens_R),
            (self.lengths_R, host.lengths_R),
            (self.left_R, host.left_R),
            (self.heat_R, host.heat_R),
            (self.tables_RP[:num_rows], host.tables_RP[:num_rows]),
            (self.uniform_KR[:num_steps], host.uniform_KR[:num_steps]),
        ):
            device.copy_(pinned, non_blocking=True)
        self.at_1.zero_()

    def append(self, logits_BV: Float[Tensor, "B V"], choose: ChoosePlain) -> None:
        """Choose every row's token and make it the current one."""
        num_rows = logits_BV.shape[0]
        uniform_B = self.uniform_KR.index_select(0, self.at_1)[0, :num_rows]
        tokens_B, logprobs_B = choose(logits_BV, self.heat_R[:num_rows], uniform_B)
        self.tokens_KR[:, :num_rows].index_copy_(0, self.at_1, tokens_B[None])
        self.logprobs_KR[:, :num_rows].index_copy_(0, self.at_1, logprobs_B[None])
        self.tokens_R[:num_rows].copy_(tokens_B)
        lengths_B, left_B = self.lengths_R[:num_rows], self.left_R[:num_rows]
        self.at_1.add_(1)
        goes_on_B = (lengths_B > 0) & (self.at_1 < left_B)
        lengths_B.copy_(torch.where(goes_on_B, lengths_B + 1, 0))

    def send(self, step: int, num_rows: int) -> None:
        """Have what a step chose copied to the host; waits for nothing."""
        host = self._host
        host.tokens_KR[step, :num_rows].copy_(self.tokens_KR[step, :num_rows], non_blocking=True)
        host.logprobs_KR[step, :num_rows].copy_(self.logprobs_KR[step, :num_rows], non_blocking=True)
        if self._events:
            self._events[step].record()

    def chosen(self, step: int, num_rows: int) -> StepTokens:
        """What a step chose, once it was sent; waits for the device."""
        if self._events:
            self._events[step].synchronize()
        tokens_R, logprobs_R = self._host.tokens_KR[step].numpy(), self._host.logprobs_KR[step].numpy()
        return StepTokens(tokens_R[:num_rows].copy(), logprobs_R[:num_rows].copy())


class _HostRows:
    """The host's side of the buffers, pinned; read by copies that end before the next burst is filled in."""

    def __init__(self, num_rows: int, num_pages: int, *, is_pinned: bool) -> None:
        self.tokens_R = torch.zeros(num_rows, dtype=torch.int64, pin_memory=is_pinned)
        self.lengths_R = torch.zeros(num_rows, dtype=torch.int32, pin_memory=is_pinned)
        self.left_R = torch.zeros(num_rows, dtype=torch.int32, pin_memory=is_pinned)
        self.heat_R = torch.ones(num_rows, dtype=torch.float32, pin_memory=is_pinned)
        self.tables_RP = torch.zeros(num_rows, num_pages, dtype=torch.int32, pin_memory=is_pinned)
        self.uniform_KR = torch.full((MAX_STEPS, num_rows), GREEDY, dtype=torch.float64, pin_memory=is_pinned)
        self.tokens_KR = torch.zeros(MAX_STEPS, num_rows, dtype=torch.int64, pin_memory=is_pinned)
        self.logprobs_KR = torch.zeros(MAX_STEPS, num_rows, dtype=torch.float32, pin_memory=is_pinned)

    def fill(self, rows: DecodeRows) -> None:
        """Rows in order; those after them are not in use."""
        num_rows = len(rows.tokens)
        self.tokens_R.numpy()[:num_rows] = rows.tokens
        lengths_R = self.lengths_R.numpy()
        lengths_R[:num_rows] = rows.lengths
        lengths_R[num_rows:] = 0
        self.left_R.numpy()[:num_rows] = rows.num_tokens
        counts = [len(blocks) for blocks in rows.blocks]
        blocks = np.fromiter(chain.from_iterable(rows.blocks), np.int32, sum(counts))
        num_pages = max(counts)
        is_block = np.arange(num_pages) < np.array(counts)[:, None]
        self.tables_RP.numpy()[:num_rows, :num_pages][is_block] = blocks
