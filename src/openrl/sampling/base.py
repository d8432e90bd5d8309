"""The sampling engine as the worker sees it. No torch here: a fake engine needs none.

An engine is used from one thread: `add` at any time, `step` while there is work. One that computes elsewhere has work
when something has ended there, and says so through `on_news`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from openrl.errors import RequestFailed
from openrl.protocol.datum import Int32Array, Int64Array, SparseCsr
from openrl.protocol.results import SampleResult
from openrl.protocol.runs import SamplerSpec


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to choose tokens and when to end (tinker-api §4.5)."""

    max_tokens: int | None = None  # None: what the context still holds
    temperature: float = 1.0  # 0: greedy
    top_k: int = -1  # -1: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: the engine draws one
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stops_at_eos: bool = True  # only when the request names no stop at all

    @property
    def has_penalties(self) -> bool:
        """Whether the choice of a token depends on those before it other than through the model."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One sample request: a prompt, continued `num_samples` times."""

    request_id: str
    sampler: SamplerSpec
    prompt: Int32Array
    num_samples: int
    options: SamplingOptions
    wants_prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_alt_tokens_k: int = 0
    target_prompt_tokens: Int64Array | SparseCsr | None = None
    tenant_id: str = ""  # tenants get equal parts of the batch
    trace_context: str | None = None  # its traceparent; None: nobody wants to know how it was computed


@dataclass(frozen=True, slots=True)
class BatchPart:
    """What a traced job had of the batch, from its first step to its end."""

    seconds: float
    num_prefill_tokens: int  # computed for it; once more after it gave its blocks up
    num_decode_steps: int  # in which at least one of its samples decoded
    max_sequences: int  # the most that it shared a step with, its own among them
    max_adapters: int  # the most of one such step
    shared_with: tuple[str, ...] = ()  # trace contexts of others that were there, some where they are many


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A job that ended, with its result or why it failed."""

    request_id: str
    result: SampleResult | RequestFailed
    num_tokens: int  # prompt tokens computed + tokens generated
    device_s: float | None = None  # what it cost, where that is not the time of the steps
    part: BatchPart | None = None  # of a traced job that this process computed


@dataclass(frozen=True, slots=True)
class SamplingStats:
    """What the engine holds at the moment."""

    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int


HasNews = Callable[[], bool]


def no_news() -> bool:
    """Nothing has come that a step should end for."""
    return False


class SamplingEngine(Protocol):
    """Continues many sequences under many snapshots over one copy of a base model."""

    def add(self, job: SampleJob) -> None:
        """Queue a job; it joins the running batch at a later step."""
        ...

    def cancel(self, request_id: str) -> None:
        """Drop a job and free its blocks; unknown ones are fine."""
        ...

    def has_work(self) -> bool:
        """Whether `step` would compute anything, or has something to hand on."""
        ...

    def on_news(self, wake: Callable[[], None]) -> None:
        """From here on call `wake`, from any thread, when there is work that no call from outside has made."""
        ...

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        """One batch of prefill and decode; returns the jobs that it ended.

        Decoding may go on for several tokens, until `has_news` says that the caller has something to add, to cancel
        or to compute. That is then done after at most two tokens: the one under way and the one queued behind it.
        """
        ...

    def rest(self) -> None:
        """There has been nothing to do for a while: give back memory for what can be loaded again."""
        ...

    def stats(self) -> SamplingStats:
        """Occupancy, for the heartbeat."""
        ...
