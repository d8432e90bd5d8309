"""Scores the tokens of a prompt as its hidden states come in, a chunk of rows at a time.

Legend: P prompt tokens, C rows of one chunk, V vocab, K entries of a row.

The logits of position i say how likely prompt token i + 1 was. Everything but the drawn alternatives is asked
at temperature 1; the alternatives are drawn at the request's temperature, their log-probabilities are at 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from openrl.protocol.datum import Float32Array, Int32Array, Int64Array, SparseCsr
from openrl.protocol.results import TopkLogprobs
from openrl.sampling.base import SampleJob
from openrl.sampling.randomness import PROMPT_ALTERNATIVES, uniforms
from openrl.sampling.sampler import Choices, choose_tokens, likeliest_tokens, tempered_logprobs

ABSENT_LOGPROB = -99999.0
NO_TARGET = -1


def first_scored_position(job: SampleJob) -> int | None:
    """The first position whose logits the job's scores need; None where it wants no scores."""
    if job.prompt_alt_tokens_k or job.target_prompt_tokens is not None:
        return 0
    return _first_listed(job) if job.wants_prompt_logprobs or job.topk_prompt_logprobs else None


@dataclass(frozen=True, slots=True)
class PromptScores:
    """The finished scores, see SampleResult."""

    logprobs: Float32Array | None
    topk: TopkLogprobs | None
    targets: Float32Array | SparseCsr | None
    alternatives: TopkLogprobs | None


class PromptScorer:
    """Collects the scores of one prompt. Holds results only, never logits."""

    def __init__(self, job: SampleJob, seed: int) -> None:
        num_tokens = len(job.prompt)
        self._prompt = torch.from_numpy(job.prompt.astype(np.int64))
        self._first_listed = _first_listed(job)
        self._seed = seed
        self._temperature = job.options.temperature
        self._logprobs = np.full(num_tokens, np.nan, np.float32) if job.wants_prompt_logprobs else None
        self._topk = _absent(num_tokens, job.topk_prompt_logprobs)
        self._alternatives = _absent(num_tokens - 1, job.prompt_alt_tokens_k)
        self._targets = None if job.target_prompt_tokens is None else _Targets(job.target_prompt_tokens)
        self.is_finite = True

    def add(self, start: int, logits_CV: Float[Tensor, "C V"]) -> None:
        """Score with the logits of positions [start, start + C), all of them before the last token's."""
        logprobs_CV = tempered_logprobs(logits_CV, torch.ones(logits_CV.shape[0]))
        # One NaN or infinite logit spoils the whole row's softmax, so one column tells.
        self.is_finite &= bool(logprobs_CV[:, 0].isfinite().all())
        stop = start + logits_CV.shape[0]
        skipped = max(self._first_listed - start, 0)
        if start + skipped < stop:
            self._add_listed(start + skipped, stop, logprobs_CV[skipped:])
        if self._targets is not None:
            self._targets.add(start, logprobs_CV)
        if self._alternatives is not None:
            self._draw(self._alternatives, start, logits_CV, logprobs_CV)

    def result(self) -> PromptScores:
        """What has been collected; complete once every position but the last has been added."""
        targets = None if self._targets is None else self._targets.result()
        return PromptScores(self._logprobs, self._topk, targets, self._alternatives)

    def _add_listed(self, start: int, stop: int, logprobs_CV: Tensor) -> None:
        if self._logprobs is not None:
            tokens_C1 = self._prompt[start + 1 : stop + 1, None].to(logprobs_CV.device)
            self._logprobs[start + 1 : stop + 1] = logprobs_CV.gather(1, tokens_C1)[:, 0].cpu().numpy()
        if self._topk is not None:
            _fill(self._topk, start + 1, *likeliest_tokens(logprobs_CV, self._topk.token_ids.shape[1]))

    def _draw(self, out: TopkLogprobs, start: int, logits_CV: Tensor, logprobs_CV: Tensor) -> None:
        """Independent draws with replacement, one column at a time: K copies of the logits would be large."""
        num_rows, num_draws = logits_CV.shape[0], out.token_ids.shape[1]
        temperature = torch.full((num_rows,), self._temperature)
        tempered_CV = tempered_logprobs(logits_CV, temperature)
        positions = np.arange(start + 1, start + 1 + num_rows, dtype=np.uint64)
        for draw in range(num_draws):
            uniform = uniforms(_u64(self._seed), PROMPT_ALTERNATIVES, _u64(draw), positions)
            choices = Choices(
                temperature,
                torch.zeros(num_rows, dtype=torch.int64),
                torch.ones(num_rows, dtype=torch.float64),
                torch.from_numpy(uniform),
            )
            tokens_C1 = choose_tokens(tempered_CV, choices)[:, None]
            rows = slice(start, start + num_rows)
            out.token_ids[rows, draw] = tokens_C1[:, 0].cpu().numpy()
            out.logprobs[rows, draw] = logprobs_CV.gather(1, tokens_C1)[:, 0].cpu().numpy()


class _Targets:
    """Log-probabilities of given tokens: cell (i, j) is scored by the logits of position i."""

    def __init__(self, asked: Int64Array | SparseCsr) -> None:
        self._asked = asked
        if isinstance(asked, SparseCsr):
            self._tokens = asked.values.astype(np.int64)
            self._crow = asked.crow_indices
        else:
            self._tokens = asked.reshape(-1)
            self._crow = np.arange(asked.shape[0] + 1, dtype=np.int64) * asked.shape[1]
        self._logprobs = np.zeros(self._tokens.shape, np.float32)

    def add(self, start: int, logprobs_CV: Tensor) -> None:
        crow = self._crow[start : start + logprobs_CV.shape[0] + 1]
        cells = slice(int(crow[0]), int(crow[-1]))
        rows = np.repeat(np.arange(len(crow) - 1), np.diff(crow))
        tokens = self._tokens[cells]
        device = logprobs_CV.device
        # NO_TARGET indexes some column; its value is dropped below.
        columns = torch.from_numpy(np.maximum(tokens, 0)).to(device)
        picked = logprobs_CV[torch.from_numpy(rows).to(device), columns].cpu().numpy()
        self._logprobs[cells] = np.where(tokens == NO_TARGET, np.float32(0.0), picked)

    def result(self) -> Float32Array | SparseCsr:
        asked = self._asked
        if isinstance(asked, SparseCsr):
            return SparseCsr(self._logprobs, asked.crow_indices, asked.col_indices, asked.shape)
        return self._logprobs.reshape(asked.shape)


def _first_listed(job: SampleJob) -> int:
    """The first position that `prompt_logprobs` and its top-k cover."""
    last_n = job.prompt_logprobs_last_n
    return 0 if last_n is None else max(len(job.prompt) - 1 - last_n, 0)


def _absent(num_rows: int, k: int) -> TopkLogprobs | None:
    if not k:
        return None
    return TopkLogprobs(np.zeros((num_rows, k), np.int32), np.full((num_rows, k), ABSENT_LOGPROB, np.float32))


def _fill(out: TopkLogprobs, row: int, ids_CK: Tensor, logprobs_CK: Tensor) -> None:
    rows, columns = slice(row, row + ids_CK.shape[0]), slice(0, ids_CK.shape[1])
    ids: Int32Array = ids_CK.to(torch.int32).cpu().numpy()
    out.token_ids[rows, columns] = ids
    out.logprobs[rows, columns] = logprobs_CK.cpu().numpy()


def _u64(value: int) -> NDArray[np.uint64]:
    return np.full(1, value, np.uint64)
