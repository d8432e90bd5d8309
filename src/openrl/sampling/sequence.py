"""One generation: its tokens, how many of them are in the cache, and the prompt it continues."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openrl.protocol.results import StopReason


@dataclass(slots=True, eq=False)
class Prompt:
    """What the samples of one request share.

    The prompt is computed by its `leader`, one of the samples. Samples that have not started by then fork from
    `kept_blocks` and `kept_logits`; where memory ran short those are dropped and the next sample leads.
    """

    arrival: int  # order of requests
    tokens: list[int]
    adapter: str | None
    cache_key: bytes  # prefixes are shared under equal keys only
    num_unstarted: int  # samples that wait for their first token
    next_scored: int | None = None  # first position whose logits the request still needs, besides the last
    tenant: str = ""
    num_cached: int = 0  # prompt tokens found in the cache when the first sample started
    has_started: bool = False
    leader: "Sequence | None" = None
    kept_blocks: list[int] = field(default_factory=list[int])
    kept_logits: Tensor | None = None  # [V], of the last prompt token


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation. Tokens `[0, num_computed)` have their keys and values in `blocks`."""

    prompt: Prompt
    sample_index: int
    tokens: list[int]
    blocks: list[int] = field(default_factory=list[int])
    digests: list[bytes] = field(default_factory=list[bytes])  # of the full blocks that may be shared
    num_computed: int = 0
    logprobs: list[float] = field(default_factory=list[float])
    topk_token_ids: list[NDArray[np.int32]] = field(default_factory=list[NDArray[np.int32]])
    topk_logprobs: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    stop_reason: StopReason | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: earlier requests, then lower sample indices."""
        return (self.prompt.arrival, self.sample_index)

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - len(self.prompt.tokens)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that must pass through the model before the next one can be chosen."""
        return len(self.tokens) - self.num_computed

    @property
    def is_prefill(self) -> bool:
        """Whether it still computes its prompt, or recomputes itself after a preemption."""
        return self.num_uncomputed > 1 or not self.num_generated

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.prompt.tokens) :]
