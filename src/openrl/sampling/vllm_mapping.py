"""Turns sample jobs into requests to vLLM, and its replies into results: exactly, or not at all.

Sampled log-probabilities: the server runs with --logprobs-mode processed_logprobs, so they are of the distribution
that was drawn from, the tempered one. Where cuts or penalties alter that, the tokens are scored again as a prompt,
whose log-probabilities vLLM gives at temperature 1 and before all of them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openrl.errors import InvalidRequest, RequestFailed
from openrl.protocol.datum import Float32Array
from openrl.protocol.results import SampledSequence, SampleResult, StopReason, TopkLogprobs
from openrl.sampling import vllm_rules
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.sampling.vllm_client import Choice, CompletionReply, CompletionRequest, Scored, ServerBroke

ABSENT_LOGPROB = -99999.0
_SEED_BITS = 62
"""vLLM gives sample i of a request the seed + i, and takes signed numbers of 64 bits."""
_TOKEN = "token_id:"  # noqa: S105


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What requests are checked against and filled in from."""

    vocab_size: int
    context_length: int
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a job is done: one request, and whether its tokens are scored again afterwards."""

    request: CompletionRequest
    is_rescored: bool


def plan_of(job: SampleJob, facts: ModelFacts, model: str, max_model_len: int) -> Plan:
    """Raises InvalidRequest or RequestFailed for what cannot be done exactly.

    `model`: the name of the adapter or base model there; `max_model_len`: the context that the server was given.
    """
    options = job.options
    vllm_rules.check(
        options,
        facts.vocab_size,
        has_targets=job.target_prompt_tokens is not None,
        num_alternatives=job.prompt_alt_tokens_k,
    )
    _check_tokens(job, facts)
    is_rescored = vllm_rules.is_altered(options, facts.vocab_size)
    is_greedy = vllm_rules.is_greedy(options)
    wants_scores = job.wants_prompt_logprobs or job.topk_prompt_logprobs > 0
    request = CompletionRequest(
        model=model,
        prompt=job.prompt.tolist(),
        n=job.num_samples,
        max_tokens=_max_tokens(job, min(facts.context_length, max_model_len), int(is_rescored)),
        temperature=0.0 if is_greedy else options.temperature,
        top_p=1.0 if is_greedy else options.top_p,
        top_k=-1 if is_greedy or options.top_k >= facts.vocab_size else options.top_k,
        min_p=0.0 if is_greedy else options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=server_seed(job),
        stop=list(options.stop_strings),
        stop_token_ids=sorted(_stop_ids(options, facts)),
        logprobs=job.topk_sample_logprobs,
        prompt_logprobs=job.topk_prompt_logprobs if wants_scores else None,
        cache_salt=cache_salt(job),
    )
    return Plan(request, is_rescored)


def rescoring_of(plan: Plan, job: SampleJob, reply: CompletionReply) -> CompletionRequest:
    """Prompt and answer of every sample as prompts, to read what the model says of them at temperature 1."""
    prompt: list[int] = job.prompt.tolist()
    return CompletionRequest(
        model=plan.request.model,
        prompt=[[*prompt, *_token_ids(choice)] for choice in _in_order(reply, job.num_samples)],
        prompt_logprobs=job.topk_sample_logprobs,
        cache_salt=plan.request.cache_salt,
    )


def result_of(
    job: SampleJob, facts: ModelFacts, reply: CompletionReply, rescored: CompletionReply | None
) -> SampleResult:
    """The result; raises ServerBroke where the reply is not what was asked for."""
    choices = _in_order(reply, job.num_samples)
    if rescored is None:
        sequences = tuple(_sequence(job, facts, choice) for choice in choices)
    else:
        pairs = zip(choices, _in_order(rescored, job.num_samples), strict=True)
        sequences = tuple(_rescored_sequence(job, facts, choice, scores) for choice, scores in pairs)
    details = reply.usage.prompt_tokens_details
    first = choices[0]
    return SampleResult(
        sequences=sequences,
        prompt_logprobs=_prompt_logprobs(job, first) if job.wants_prompt_logprobs else None,
        topk_prompt_logprobs=_topk_prompt_logprobs(job, first) if job.topk_prompt_logprobs else None,
        prompt_cache_hit_tokens=(details.cached_tokens or 0) if details is not None else 0,
    )


def server_seed(job: SampleJob) -> int:
    """The seed of a job's first sample; those of other jobs and other seeds are far from it.

    Without a seed it comes from the request id: a request that runs again elsewhere gives the same tokens.
    """
    seed = job.options.seed
    text = f"id {job.request_id}" if seed is None else f"seed {seed}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 2**_SEED_BITS


def cache_salt(job: SampleJob) -> str:
    """Who may share computed prefixes: requests of one sampler, which belongs to one tenant."""
    identity = repr((job.sampler.sampler_id, job.sampler.base_model, job.sampler.adapter_key))
    return hashlib.blake2b(identity.encode(), digest_size=32).hexdigest()


def probe_of(model: str, token: int) -> CompletionRequest:
    """One token that has no alternative: its log-probability tells which kind the server gives."""
    return CompletionRequest(model=model, prompt=[0], temperature=1.0, allowed_token_ids=[token])


def fault_of_probe(token: int, reply: CompletionReply) -> str | None:
    """Why a server that answers a probe so cannot be used."""
    choice = _in_order(reply, 1)[0]
    if choice.token_ids is None:
        return "it returns no token ids: it must be vLLM 0.26 or newer"
    if choice.token_ids != [token]:
        return f"it was told to say token {token} and said {choice.token_ids[:8]}"
    # The only token that may be drawn has probability 1; the model alone would give it less.
    if abs(_logprobs(choice)[0]) > 1e-3:
        return "its log-probabilities are the model's own: start it with --logprobs-mode processed_logprobs"
    return None


def num_computed_tokens(job: SampleJob, result: SampleResult) -> int:
    """Prompt tokens computed and tokens generated."""
    generated = sum(len(sequence.tokens) for sequence in result.sequences)
    return len(job.prompt) - result.prompt_cache_hit_tokens + generated


def _stop_ids(options: SamplingOptions, facts: ModelFacts) -> frozenset[int]:
    return (facts.eos_token_ids if options.stops_at_eos else frozenset[int]()) | frozenset(options.stop_token_ids)


def _max_tokens(job: SampleJob, context: int, num_kept_free: int) -> int:
    """Scoring again needs room for one more token than the answer has."""
    num_prompt, asked = len(job.prompt), job.options.max_tokens
    room = context - num_kept_free - num_prompt
    if room < (asked or 1):
        kept = f", {num_kept_free} of them kept free for scoring cut or penalised tokens" if num_kept_free else ""
        raise InvalidRequest(
            f"the prompt has {num_prompt} tokens and max_tokens is {asked}: together they exceed the context of the "
            f"vLLM servers, {context} tokens{kept}",
            "context_exceeded",
        )
    return room if asked is None else asked


def _check_tokens(job: SampleJob, facts: ModelFacts) -> None:
    num_prompt, asked = len(job.prompt), job.options.max_tokens
    if num_prompt < 1 or job.num_samples < 1 or (asked is not None and asked < 1):
        raise RequestFailed(
            f"prompt of {num_prompt} tokens, {job.num_samples} samples, max_tokens {asked}: each must be at least 1",
            "user",
        )
    lowest, highest = int(job.prompt.min()), int(job.prompt.max())
    if lowest < 0 or highest >= facts.vocab_size:
        raise RequestFailed(f"token ids must be in [0, {facts.vocab_size}); the prompt has {lowest}..{highest}", "user")


def _in_order(reply: CompletionReply, num_samples: int) -> list[Choice]:
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(num_samples)):
        raise ServerBroke(f"asked for {num_samples} continuations, got {[choice.index for choice in choices][:8]}")
    return choices


def _token_ids(choice: Choice) -> list[int]:
    if not choice.token_ids:
        raise ServerBroke("a continuation has no tokens")
    return choice.token_ids


def _logprobs(choice: Choice) -> list[float]:
    found = [] if choice.logprobs is None else choice.logprobs.token_logprobs
    values = [value for value in found if value is not None and math.isfinite(value)]
    if len(values) != len(_token_ids(choice)):
        raise ServerBroke(f"{len(_token_ids(choice))} tokens have {len(values)} finite log-probabilities")
    return values


def _stop_reason(job: SampleJob, facts: ModelFacts, choice: Choice) -> StopReason:
    """A stop that comes with the last token allowed is a stop."""
    if choice.finish_reason == "stop" or _token_ids(choice)[-1] in _stop_ids(job.options, facts):
        return "stop"
    if choice.finish_reason == "length":
        return "length"
    raise ServerBroke(f"a continuation ended with finish_reason {choice.finish_reason!r}")


def _sequence(job: SampleJob, facts: ModelFacts, choice: Choice) -> SampledSequence:
    k = job.topk_sample_logprobs
    logprobs = _logprobs(choice)
    topk = None
    if k and choice.logprobs is not None:
        places = [
            {_id_of(name): value for name, value in (place or {}).items()} for place in choice.logprobs.top_logprobs
        ]
        topk = _topk(places, k, len(logprobs))
    return SampledSequence(
        stop_reason=_stop_reason(job, facts, choice),
        tokens=np.asarray(_token_ids(choice), np.int32),
        logprobs=np.asarray(logprobs, np.float32),
        topk_logprobs=topk,
    )


def _rescored_sequence(job: SampleJob, facts: ModelFacts, choice: Choice, scores: Choice) -> SampledSequence:
    tokens = _token_ids(choice)
    places = _scores_of(scores, len(job.prompt) + len(tokens))[len(job.prompt) :]
    logprobs = [_score(place, token) for place, token in zip(places, tokens, strict=True)]
    k = job.topk_sample_logprobs
    return SampledSequence(
        stop_reason=_stop_reason(job, facts, choice),
        tokens=np.asarray(tokens, np.int32),
        logprobs=np.asarray(logprobs, np.float32),
        topk_logprobs=_topk([_ranked(place, k) for place in places], k, len(tokens)) if k else None,
    )


def _prompt_logprobs(job: SampleJob, choice: Choice) -> Float32Array:
    tokens: list[int] = job.prompt.tolist()
    first = _first_listed(job)
    values = np.full(len(tokens), np.nan, np.float32)
    places = _scores_of(choice, len(tokens))
    for index in range(first, len(tokens)):
        values[index] = _score(places[index], tokens[index])
    return values


def _topk_prompt_logprobs(job: SampleJob, choice: Choice) -> TopkLogprobs:
    k, first = job.topk_prompt_logprobs, _first_listed(job)
    places = _scores_of(choice, len(job.prompt))
    return _topk([_ranked(place, k) if i >= first else {} for i, place in enumerate(places)], k, len(places))


def _first_listed(job: SampleJob) -> int:
    """The first token that prompt scores cover; the first of all has none."""
    last_n = job.prompt_logprobs_last_n
    return 1 if last_n is None else max(len(job.prompt) - last_n, 1)


def _scores_of(choice: Choice, num_tokens: int) -> Sequence[Mapping[str, Scored]]:
    places = choice.prompt_logprobs or []
    if len(places) != num_tokens:
        raise ServerBroke(f"a prompt of {num_tokens} tokens has log-probabilities at {len(places)} places")
    return [place or {} for place in places]


def _score(place: Mapping[str, Scored], token: int) -> float:
    scored = place.get(str(token))
    if scored is None or not math.isfinite(scored.logprob):
        raise ServerBroke(f"token {token} of a prompt has no finite log-probability")
    return scored.logprob


def _ranked(place: Mapping[str, Scored], k: int) -> dict[int, float]:
    """Of a place of a prompt: the token itself is listed too, also where it is not among the likeliest."""
    return {int(token): each.logprob for token, each in place.items() if each.rank is None or each.rank <= k}


def _topk(places: Sequence[Mapping[int, float]], k: int, num_rows: int) -> TopkLogprobs:
    """The likeliest first; of equals the lowest id. What a place lacks is absent."""
    if len(places) != num_rows:
        raise ServerBroke(f"{num_rows} tokens have likeliest ones at {len(places)} places")
    ids = np.zeros((num_rows, k), np.int32)
    logprobs = np.full((num_rows, k), ABSENT_LOGPROB, np.float32)
    for row, place in enumerate(places):
        for column, (token, value) in enumerate(sorted(place.items(), key=lambda each: (-each[1], each[0]))[:k]):
            ids[row, column], logprobs[row, column] = token, value
    return TopkLogprobs(ids, logprobs)


def _id_of(name: str) -> int:
    number = name.removeprefix(_TOKEN)
    if not number.isdigit():
        raise ServerBroke(f"a token is named {name[:40]!r}, not {_TOKEN}NUMBER")
    return int(number)
