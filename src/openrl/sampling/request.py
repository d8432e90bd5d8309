"""One accepted sample request while it is worked on: checks, its sequences, its result."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from openrl.errors import RequestFailed
from openrl.protocol.datum import SparseCsr
from openrl.protocol.results import SampledSequence, SampleResult, TopkLogprobs
from openrl.sampling.base import BatchPart, FinishedSample, SampleJob
from openrl.sampling.block_manager import DIGEST_BYTES
from openrl.sampling.logits_processing import Processing, processing_of
from openrl.sampling.prompt_logprobs import PromptScorer, first_scored_position
from openrl.sampling.randomness import SAMPLED_TOKENS, uniforms
from openrl.sampling.sampler import Choices
from openrl.sampling.sequence import Prompt, Sequence
from openrl.sampling.stopping import Decoder, StopRule, StopWatch
from openrl.sampling.token_history import PromptTokens, TokenHistory

SEED_LIMIT = 2**64


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a request may ask of an engine."""

    vocab_size: int
    context_length: int
    cache_tokens: int  # that the KV cache holds in all


@dataclass(frozen=True, slots=True)
class ActiveRequest:
    """A job with everything that its samples share."""

    job: SampleJob
    seed: int
    prompt: Prompt
    sequences: tuple[Sequence, ...]
    watches: tuple[StopWatch, ...]
    stop_rule: StopRule
    scorer: PromptScorer | None
    histories: tuple[TokenHistory, ...]  # one a sample, or none at all without penalties
    is_plain: bool  # tokens are drawn from the whole tempered distribution, or are its likeliest; no more is asked

    @property
    def is_finished(self) -> bool:
        """Whether all samples have ended."""
        return all(sequence.stop_reason is not None for sequence in self.sequences)

    def finished(self, error: RequestFailed | None = None, part: BatchPart | None = None) -> FinishedSample:
        """The report of a request that ended, or that failed with `error`; `part`: what it had of the batch."""
        num_tokens = len(self.prompt.tokens) - self.prompt.num_cached if self.prompt.has_started else 0
        num_tokens += sum(sequence.num_generated for sequence in self.sequences)
        return FinishedSample(self.job.request_id, error or self._result(), num_tokens, part=part)

    def _result(self) -> SampleResult | RequestFailed:
        if self.scorer is None:
            return SampleResult(self._sampled(), prompt_cache_hit_tokens=self.prompt.num_cached)
        if not self.scorer.is_finite:
            return non_finite()
        scores = self.scorer.result()
        return SampleResult(
            sequences=self._sampled(),
            prompt_logprobs=scores.logprobs,
            topk_prompt_logprobs=scores.topk,
            prompt_cache_hit_tokens=self.prompt.num_cached,
            target_prompt_logprobs=scores.targets,
            prompt_alt_tokens=scores.alternatives,
        )

    def _sampled(self) -> tuple[SampledSequence, ...]:
        return tuple(_sampled_sequence(sequence) for sequence in self.sequences)


def open_request(
    job: SampleJob, arrival: int, limits: EngineLimits, eos_token_ids: frozenset[int], decoder: Decoder
) -> ActiveRequest:
    """Make a job's sequences; raises RequestFailed where it can never be served."""
    max_new_tokens = _max_new_tokens(job, limits)
    _check_tokens(job, limits)
    tokens: list[int] = job.prompt.tolist()
    seed = seed_of(job)
    prompt = Prompt(
        arrival=arrival,
        tokens=tokens,
        adapter=job.sampler.adapter_key,
        cache_key=cache_key(job),
        num_unstarted=job.num_samples,
        next_scored=first_scored_position(job),
        tenant=job.tenant_id,
    )
    stop_rule = StopRule(job.options, max_new_tokens, eos_token_ids, decoder)
    return ActiveRequest(
        job=job,
        seed=seed,
        prompt=prompt,
        sequences=tuple(Sequence(prompt, index, list(tokens)) for index in range(job.num_samples)),
        watches=tuple(stop_rule.watch(tokens) for _ in range(job.num_samples)),
        stop_rule=stop_rule,
        scorer=None if prompt.next_scored is None else PromptScorer(job, seed),
        histories=_histories(job, tokens),
        is_plain=_is_plain(job),
    )


def choices_of(sequences: list[Sequence], requests: list[ActiveRequest]) -> Choices:
    """How each of these sequences chooses its next token; `requests[i]` owns `sequences[i]`."""
    return choices_with(requests, uniforms_of(sequences, requests, 1)[0])


def uniforms_of(sequences: list[Sequence], requests: list[ActiveRequest], num_steps: int) -> NDArray[np.float64]:
    """The uniform numbers of these sequences' next tokens, [steps, sequences]."""
    num_generated = np.array([sequence.num_generated for sequence in sequences], np.uint64)
    return uniforms(
        np.array([request.seed for request in requests], np.uint64),
        SAMPLED_TOKENS,
        np.array([sequence.sample_index for sequence in sequences], np.uint64),
        num_generated + np.arange(num_steps, dtype=np.uint64)[:, None],
    )


def choices_with(requests: list[ActiveRequest], uniform: NDArray[np.float64]) -> Choices:
    """How these requests choose with one uniform number each."""
    options = [request.job.options for request in requests]
    return Choices(
        temperature=torch.tensor([option.temperature for option in options], dtype=torch.float32),
        top_k=torch.tensor([max(option.top_k, 0) for option in options]),
        top_p=torch.tensor([option.top_p for option in options], dtype=torch.float64),
        uniform=torch.from_numpy(uniform),
    )


def processing_for(sequences: list[Sequence], requests: list[ActiveRequest]) -> Processing | None:
    """What is done to the rows of these sequences before they choose; None where nothing is."""
    rows = [row for row, request in enumerate(requests) if request.histories or request.job.options.min_p]
    if not rows:
        return None
    histories: list[TokenHistory | None] = []
    for row in rows:
        sequence = sequences[row]
        history = requests[row].histories[sequence.sample_index] if requests[row].histories else None
        if history is not None:
            history.follow(sequence.tokens)
        histories.append(history)
    return processing_of(rows, [requests[row].job.options for row in rows], histories)


def seed_of(job: SampleJob) -> int:
    """The seed in [0, 2^64). Without one it is drawn from the request id: another worker repeats the same tokens."""
    if job.options.seed is not None:
        return job.options.seed % SEED_LIMIT
    return int.from_bytes(hashlib.blake2b(job.request_id.encode(), digest_size=8).digest(), "little")


def cache_key(job: SampleJob) -> bytes:
    """Who may share computed prefixes: requests of one sampler with one adapter.

    The sampler belongs to one tenant. Sharing wider would tell tenants, by time and by the count of cached
    tokens, what others have sent to the same base model.
    """
    identity = repr((job.sampler.sampler_id, job.sampler.base_model, job.sampler.adapter_key))
    return hashlib.blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()


def non_finite() -> RequestFailed:
    """The error of a request whose weights give NaN or infinite logits."""
    return RequestFailed("the model gave logits that are not finite for this request", "user")


def _max_new_tokens(job: SampleJob, limits: EngineLimits) -> int:
    """Tokens that each sample may generate."""
    num_prompt, asked = len(job.prompt), job.options.max_tokens
    room = min(limits.context_length, limits.cache_tokens)
    name = "context length" if room == limits.context_length else "KV cache"
    if num_prompt < 1 or job.num_samples < 1 or (asked is not None and asked < 1):
        raise RequestFailed(
            f"prompt of {num_prompt} tokens, {job.num_samples} samples, max_tokens {asked}: each must be at least 1",
            "user",
        )
    if num_prompt + (asked or 1) > room:
        raise RequestFailed(
            f"the prompt has {num_prompt} tokens and max_tokens is {asked}: "
            f"together they exceed the {name} of {room} tokens",
            "user",
        )
    return room - num_prompt if asked is None else asked


def _histories(job: SampleJob, tokens: list[int]) -> tuple[TokenHistory, ...]:
    if not job.options.has_penalties:
        return ()
    prompt = PromptTokens(tokens)
    return tuple(TokenHistory(prompt, len(tokens)) for _ in range(job.num_samples))


def _is_plain(job: SampleJob) -> bool:
    options = job.options
    is_greedy = options.temperature == 0.0 or options.top_k == 1
    is_cut = not is_greedy and (options.top_k > 0 or options.top_p < 1.0)
    return not (is_cut or options.min_p or options.has_penalties or job.topk_sample_logprobs)


def _check_tokens(job: SampleJob, limits: EngineLimits) -> None:
    """An id outside the vocabulary would end the whole process on CUDA."""
    lowest, highest = int(job.prompt.min()), int(job.prompt.max())
    targets = job.target_prompt_tokens
    if targets is not None:
        shape = targets.shape
        if len(shape) != 2 or shape[0] != len(job.prompt) - 1:
            raise RequestFailed(
                f"target_prompt_logprobs has shape {tuple(shape)}; it must be [{len(job.prompt) - 1}, K]", "user"
            )
        ids = targets.values if isinstance(targets, SparseCsr) else targets
        if ids.size:
            lowest, highest = min(lowest, int(ids.min()) + 1), max(highest, int(ids.max()))
    if lowest < 0 or highest >= limits.vocab_size:
        raise RequestFailed(
            f"token ids must be in [0, {limits.vocab_size}), targets may be -1; the request has {lowest}..{highest}",
            "user",
        )


def _sampled_sequence(sequence: Sequence) -> SampledSequence:
    assert sequence.stop_reason is not None, "only finished sequences have a result"
    topk = None
    if sequence.topk_token_ids:
        topk = TopkLogprobs(np.stack(sequence.topk_token_ids), np.stack(sequence.topk_logprobs))
    return SampledSequence(
        stop_reason=sequence.stop_reason,
        tokens=np.asarray(sequence.generated, np.int32),
        logprobs=np.asarray(sequence.logprobs, np.float32),
        topk_logprobs=topk,
    )
