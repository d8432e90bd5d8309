"""What engines hand back, before it is encoded for the wire."""

from dataclasses import dataclass
from typing import Literal

from openrl.protocol.datum import DenseArray, Float32Array, Int32Array, SparseCsr

StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ForwardBackwardResult:
    """Per-datum outputs and metrics of one `forward_backward` request.

    Every datum's dict has the same keys; `logprobs` has the shape of that datum's targets.
    Metric names carry their reduction after the only colon, e.g. `loss:sum` (tinker-api §3.5).
    """

    outputs: tuple[dict[str, DenseArray], ...]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class TopkLogprobs:
    """The k likeliest tokens at each of N places; absent cells are token 0 at -99999.0."""

    token_ids: Int32Array  # [N, K]
    logprobs: Float32Array  # [N, K]


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """One generated continuation; the stop token, if one ended it, is its last token."""

    stop_reason: StopReason
    tokens: Int32Array  # [N]
    logprobs: Float32Array  # [N], of the tempered distribution
    topk_logprobs: TopkLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The result of one `asample` request (tinker-api §4.1 SampleResponse)."""

    sequences: tuple[SampledSequence, ...]
    prompt_logprobs: Float32Array | None = None  # [prompt tokens], NaN where absent
    topk_prompt_logprobs: TopkLogprobs | None = None
    prompt_cache_hit_tokens: int = 0
    target_prompt_logprobs: Float32Array | SparseCsr | None = None  # [prompt tokens - 1, K]
    prompt_alt_tokens: TopkLogprobs | None = None  # [prompt tokens - 1, K]
