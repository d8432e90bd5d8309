"""Continues many sequences under many snapshots, one step at a time.

Legend: T packed rows, M chosen rows, C rows of a chunk, D model dim, V vocab, K likeliest tokens.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.config import SamplingConfig
from openrl.errors import OpenRLError, RequestFailed
from openrl.model.adapter import AdapterWeights
from openrl.model.adapter_banks import create_bank
from openrl.model.base_model import BaseModel
from openrl.model.batch import BASE_SLOT
from openrl.model.lora import AdapterBank
from openrl.sampling.adapters import AdapterSlots
from openrl.sampling.base import FinishedSample, HasNews, SampleJob, SamplingStats, no_news
from openrl.sampling.batch_parts import BatchParts
from openrl.sampling.batcher import Batcher, Fork, Slice
from openrl.sampling.block_manager import BlockManager
from openrl.sampling.burst import BurstLength
from openrl.sampling.decode_loop import Burst, DecodeLoop, SteppedLoop
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.logits_processing import process
from openrl.sampling.model_runner import ModelRunner, row_ranges
from openrl.sampling.prompt_scoring import score_prompts
from openrl.sampling.request import (
    ActiveRequest,
    EngineLimits,
    choices_of,
    choices_with,
    non_finite,
    open_request,
    processing_for,
    uniforms_of,
)
from openrl.sampling.sampler import choose_tokens, likeliest_tokens, row_chunks, tempered_logprobs
from openrl.sampling.sequence import Sequence as SampledSequence
from openrl.sampling.sizes import EngineSizes, resolve_sizes
from openrl.sampling.turns import StepTurns

LoadAdapter = Callable[[str], AdapterWeights]
"""Reads the snapshot stored under a key; raises OpenRLError where there is none."""


class PagedSamplingEngine:
    """See SamplingEngine."""

    def __init__(
        self,
        model: BaseModel,
        sizes: EngineSizes,
        load_adapter: LoadAdapter,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        cache = KVCache(
            model.num_layers,
            sizes.num_blocks,
            sizes.block_tokens,
            model.num_kv_heads,
            model.head_dim,
            model.dtype,
            model.device,
        )
        self.max_sequences = sizes.max_sequences
        self._model = model
        self._cache = cache
        self._load_adapter = load_adapter
        self._limits = EngineLimits(model.vocab_size, model.context_length, sizes.num_blocks * sizes.block_tokens)
        self._bank = create_bank(model, sizes.num_adapters)
        self._runner = ModelRunner(model, cache, self._bank)
        self._slots = AdapterSlots(sizes.num_adapters)
        self._blocks = BlockManager(sizes.num_blocks, sizes.block_tokens, sizes.max_idle_blocks)
        self._batcher = Batcher(self._blocks, self._slots, sizes.max_sequences, sizes.prefill_tokens)
        self._loop: DecodeLoop = _create_loop(model, cache, self._bank, sizes) or SteppedLoop(self._runner)
        self._lengths = BurstLength(sizes.burst_s)
        self._turns = StepTurns(sizes.max_sequences, sizes.max_slowdown)
        self._clock = clock
        self._parts = BatchParts(clock)
        self._requests: dict[str, ActiveRequest] = {}
        self._of_prompt: dict[int, ActiveRequest] = {}  # by arrival
        self._ended: list[FinishedSample] = []  # since the last step
        self._num_arrived = 0
        self._did_prompts = False  # in the last step, while others decoded

    def add(self, job: SampleJob) -> None:
        assert job.request_id not in self._requests, "a request is added once"
        try:
            request = open_request(
                job, self._num_arrived, self._limits, self._model.eos_token_ids, self._model.tokenizer
            )
        except RequestFailed as error:
            self._ended.append(FinishedSample(job.request_id, error, 0))
            return
        self._num_arrived += 1
        self._requests[job.request_id] = request
        self._of_prompt[request.prompt.arrival] = request
        self._parts.expect(request.prompt.arrival, job.trace_context)
        self._batcher.add(request.sequences)

    def cancel(self, request_id: str) -> None:
        self._ended = [ended for ended in self._ended if ended.request_id != request_id]
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request)

    def has_work(self) -> bool:
        return bool(self._requests or self._ended)

    def on_news(self, wake: Callable[[], None]) -> None:
        """Work comes from `add` alone."""

    def rest(self) -> None:
        if self._model.device.type == "cpu":  # elsewhere the slots' memory is nobody else's to use
            for slot in self._slots.drop_unpinned():
                self._bank.clear(slot)

    def stats(self) -> SamplingStats:
        return SamplingStats(
            num_running=len(self._batcher.running),
            num_waiting=len(self._batcher.waiting),
            kv_blocks_used=self._blocks.num_used,
            kv_blocks_total=self._blocks.num_blocks,
        )

    @torch.inference_mode()
    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        started = self._clock()
        tenants = self._turns.choose(self._batcher.num_sequences)
        plan = self._batcher.plan(tenants)
        if plan.is_empty:  # those whose turn it is find no room
            tenants = None
            plan = self._batcher.plan()
        self._load_adapters()
        # Requests whose adapter could not be loaded are gone; their part of the plan goes too.
        forks = [fork for fork in plan.forks if self._is_live(fork.sequence)]
        if forks and self._loop.takes_single_steps:
            self._step([], forks)
            forks = []
        slices = sorted((s for s in plan.slices if self._is_live(s.sequence)), key=lambda s: self._slot(s.sequence))
        part = self._part(slices)
        is_decode = all(each.length == 1 for each in part)
        num_left = [] if forks or not is_decode else self._num_left(part)
        max_s = math.inf if tenants is None else self._turns.owed_s
        num_steps, reserved = self._reserve(part, num_left, max_s if len(part) == len(slices) else 0.0)
        self._parts.enter(part)
        self._cache.copy(plan.copies)
        self._cache.clear([*plan.fresh_blocks, *reserved])
        if num_steps > 1 or (num_left and self._loop.takes_single_steps):
            num_steps = self._burst(part, num_left, num_steps, has_news)
        else:
            self._step(part, forks)
        seconds = self._clock() - started
        if num_left:
            self._lengths.record(num_steps, seconds)
        self._turns.record(tenants, seconds, is_decode=is_decode, num_steps=num_steps)
        ended, self._ended = self._ended, []
        return ended

    def _part(self, slices: list[Slice]) -> list[Slice]:
        """What of the plan to compute: prompts and decoding take turns where decoding has kernels of its own.

        A new prompt goes first: its first token does not wait for a step of all the others, who wait for one pass.
        """
        prompts = [step for step in slices if step.sequence.is_prefill]
        is_mixed = self._loop.takes_single_steps and 0 < len(prompts) < len(slices)
        self._did_prompts = is_mixed and not self._did_prompts
        if not is_mixed:
            return slices
        return prompts if self._did_prompts else [step for step in slices if not step.sequence.is_prefill]

    def _num_left(self, slices: list[Slice]) -> list[int]:
        """Tokens that each sequence may still take; nothing where one of them cannot join a burst."""
        num_left: list[int] = []
        for step in slices:
            sequence = step.sequence
            request = self._of_prompt[sequence.prompt.arrival]
            if not request.is_plain or sequence.is_prefill or sequence.prompt.next_scored is not None:
                return []
            num_left.append(request.stop_rule.num_left(sequence.num_generated))
        return num_left

    def _reserve(self, slices: list[Slice], num_left: list[int], max_s: float) -> tuple[int, list[int]]:
        """How many steps to do at once, and the blocks taken for them."""
        if not num_left:
            return 1, []
        num_steps = self._lengths.num_steps(num_left, max_s, are_waiting=bool(self._batcher.waiting))
        return self._batcher.reserve(slices, num_left, num_steps)

    def _burst(self, slices: list[Slice], num_left: list[int], num_steps: int, has_news: HasNews) -> int:
        """Append up to so many tokens to every sequence, fewer when there is news; end those that are complete.

        Returns how many steps were done. A step's tokens are looked at while the device computes the next.
        """
        sequences = [step.sequence for step in slices]
        requests = [self._of_prompt[sequence.prompt.arrival] for sequence in sequences]
        uniform_KB = uniforms_of(sequences, requests, num_steps)
        num_tokens = [min(left, num_steps) for left in num_left]
        slots = [self._slot(sequence) for sequence in sequences]
        burst = Burst(sequences, slots, num_tokens, choices_with(requests, uniform_KB[0]), uniform_KB)
        num_done, ended_at = 0, math.inf

        def goes_on() -> bool:
            nonlocal ended_at
            now = self._clock()
            ended_at = min(ended_at, now) if self._ended else math.inf
            is_over = has_news() or self._lengths.is_over(now - ended_at)
            return not is_over and self._any_open(sequences)

        for found in self._loop.run(burst, goes_on):
            if num_done:
                self._parts.decode()
            rows = zip(sequences, requests, num_tokens, found.tokens_B.tolist(), found.logprobs_B.tolist(), strict=True)
            for sequence, request, count, token, logprob in rows:
                if num_done < count and sequence.stop_reason is None and self._is_live(sequence):
                    self._append(sequence, request, token, logprob)
            num_done += 1
        return num_done

    def _any_open(self, sequences: list[SampledSequence]) -> bool:
        return any(sequence.stop_reason is None and self._is_live(sequence) for sequence in sequences)

    def _step(self, slices: list[Slice], forks: list[Fork]) -> None:
        """Compute the slices and append a token to every sequence that is complete."""
        sequences, logits = self._compute(slices) if slices else ([], [])
        if forks:
            sequences += [fork.sequence for fork in forks]
            logits.append(torch.stack([fork.logits_V for fork in forks]))
        if sequences:
            self._choose(sequences, logits)

    def _load_adapters(self) -> None:
        """Fill the slots given away by the plan; an adapter that cannot be loaded fails its requests alone."""
        for key, slot in self._slots.take_pending():
            try:
                self._bank.write(slot, self._load_adapter(key))
            except OpenRLError as error:
                failure = error if isinstance(error, RequestFailed) else RequestFailed(str(error), "server")
                for sequence in [s for s in self._batcher.running if s.prompt.adapter == key]:
                    if self._is_live(sequence):
                        self._end(self._of_prompt[sequence.prompt.arrival], failure)
                self._slots.forget(key)

    def _compute(self, slices: list[Slice]) -> tuple[list[SampledSequence], list[Tensor]]:
        """Returns the sequences complete after these slices and their logits."""
        sequences = [step.sequence for step in slices]
        slots = [self._slot(sequence) for sequence in sequences]
        if any(sequence.is_prefill for sequence in sequences):
            return self._forward(slices, slots)
        logits_BV = self._loop.logits(sequences, slots)
        if logits_BV is None:
            return self._forward(slices, slots)
        for step in slices:
            self._batcher.advance(step.sequence, step.start + step.length)
        return sequences, [logits_BV]

    def _forward(self, slices: list[Slice], slots: list[int]) -> tuple[list[SampledSequence], list[Tensor]]:
        """One forward pass and the prompt scores from it; see _compute."""
        rows = row_ranges(slices, slots)
        sequences = [step.sequence for step in slices if step.is_last]
        ends = [part.last for step, part in zip(slices, rows, strict=True) if step.is_last]
        is_scored = any(step.sequence.prompt.next_scored is not None for step in slices)
        logits_TV = None if is_scored else self._loop.slice_logits(slices, slots)
        if logits_TV is not None:
            logits_MV = logits_TV[[end.start for end in ends]]
        else:
            hidden_TD = self._runner.hidden(slices, slots)
            logits_MV = self._runner.logits(hidden_TD, ends) if ends else None
            scorers = [self._of_prompt[step.sequence.prompt.arrival].scorer for step in slices]
            score_prompts(self._runner, hidden_TD, slices, rows, scorers)
        for step in slices:
            self._batcher.advance(step.sequence, step.start + step.length)
        if logits_MV is None or not sequences:
            return [], []
        self._keep_prompts(sequences, logits_MV)
        return sequences, [logits_MV]

    def _keep_prompts(self, sequences: list[SampledSequence], logits_MV: Tensor) -> None:
        for sequence, logits_V in zip(sequences, logits_MV, strict=True):
            if sequence.prompt.leader is sequence:
                self._batcher.keep_prompt(sequence, logits_V)

    def _choose(self, sequences: list[SampledSequence], logits: list[Float[Tensor, "_ V"]]) -> None:
        """Append one token to every sequence; end those that are complete."""
        requests = [self._of_prompt[sequence.prompt.arrival] for sequence in sequences]
        choices = choices_of(sequences, requests)
        tokens: list[int] = []
        logprobs: list[float] = []
        for logits_CV in row_chunks(logits):
            rows = slice(len(tokens), len(tokens) + logits_CV.shape[0])
            chosen = choices.take(rows)
            logprobs_CV = tempered_logprobs(logits_CV, chosen.temperature)
            processing = processing_for(sequences[rows], requests[rows])
            # Reported are the log-probabilities of the model; processed ones only choose.
            chosen_by_CV = (
                logprobs_CV if processing is None else process(logits_CV, logprobs_CV, chosen.temperature, processing)
            )
            tokens_C = choose_tokens(chosen_by_CV, chosen)
            tokens += tokens_C.tolist()
            logprobs += logprobs_CV.gather(1, tokens_C[:, None])[:, 0].tolist()
            self._add_topk(sequences[rows], requests[rows], logprobs_CV)
        for sequence, request, token, logprob in zip(sequences, requests, tokens, logprobs, strict=True):
            if self._is_live(sequence):
                self._append(sequence, request, token, logprob)

    def _append(self, sequence: SampledSequence, request: ActiveRequest, token: int, logprob: float) -> None:
        """Take a sequence's next token."""
        if not math.isfinite(logprob):
            self._end(request, non_finite())
            return
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
        watch = request.watches[sequence.sample_index]
        sequence.stop_reason = request.stop_rule.reason(token, sequence.num_generated, watch)
        self._batcher.advance(sequence, len(sequence.tokens) - 1)
        if sequence.stop_reason is not None:
            self._batcher.finish(sequence)
            if request.is_finished:
                self._end(request, None)

    def _add_topk(self, sequences: list[SampledSequence], requests: list[ActiveRequest], logprobs_MV: Tensor) -> None:
        """The likeliest tokens beside the chosen one, where asked for; of the same tempered distribution."""
        wanted = [row for row, request in enumerate(requests) if request.job.topk_sample_logprobs]
        if not wanted:
            return
        most = max(requests[row].job.topk_sample_logprobs for row in wanted)
        ids_MK, values_MK = likeliest_tokens(logprobs_MV[torch.tensor(wanted, device=logprobs_MV.device)], most)
        ids, values = ids_MK.to(torch.int32).cpu().numpy(), values_MK.cpu().numpy()
        for index, row in enumerate(wanted):
            k = requests[row].job.topk_sample_logprobs
            sequences[row].topk_token_ids.append(ids[index, :k])
            sequences[row].topk_logprobs.append(values[index, :k])

    def _end(self, request: ActiveRequest, error: RequestFailed | None) -> None:
        self._ended.append(request.finished(error, self._parts.leave(request.prompt.arrival)))
        self._forget(request)

    def _forget(self, request: ActiveRequest) -> None:
        self._batcher.remove(request.prompt)
        self._parts.leave(request.prompt.arrival)
        del self._requests[request.job.request_id]
        del self._of_prompt[request.prompt.arrival]

    def _is_live(self, sequence: SampledSequence) -> bool:
        return sequence.prompt.arrival in self._of_prompt

    def _slot(self, sequence: SampledSequence) -> int:
        key = sequence.prompt.adapter
        return BASE_SLOT if key is None else self._slots.slot(key)


def create_sampling_engine(model: BaseModel, config: SamplingConfig, load_adapter: LoadAdapter) -> PagedSamplingEngine:
    """An engine over `model`; raises InvalidRequest where the cache cannot hold a single block."""
    return PagedSamplingEngine(model, resolve_sizes(model, config), load_adapter)


def _create_loop(model: BaseModel, cache: KVCache, bank: AdapterBank, sizes: EngineSizes) -> DecodeLoop | None:
    if model.device.type != "cuda":
        return None
    # Triton need not be installed where there is no GPU.
    from openrl.sampling.decode_device import create_graph_loop  # noqa: PLC0415

    return create_graph_loop(model, cache, bank, sizes.max_sequences, sizes.num_blocks)
