"""Picks the sequences of one step: decode first, then prompts in chunks, then new ones by arrival.

Pure: no tensors are touched and no weights are loaded here. A step never waits to be full. Where blocks run out, the
sequence that came last gives its blocks up and is recomputed later.

Tenants get equal parts of the batch (max-min fairness): the one that runs fewest sequences starts its next one first.
One that finds the batch full takes the place, and the blocks, of the latest sequence of the tenant that runs most, as
long as that one still runs more than it does.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from openrl.sampling.adapters import AdapterSlots
from openrl.sampling.block_manager import BlockManager
from openrl.sampling.sequence import Prompt, Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens `[start, start + length)` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be chosen after this slice."""
        return self.start + self.length == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence that takes its first token from the logits its prompt ended with."""

    sequence: Sequence
    logits_V: Tensor


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does, in this order: copy, clear, compute, choose tokens."""

    copies: tuple[tuple[int, int], ...]  # (from, to) blocks; all are read before any is written
    fresh_blocks: tuple[int, ...]  # may hold what another sequence left
    slices: tuple[Slice, ...]
    forks: tuple[Fork, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no sequence gets on."""
        return not self.slices and not self.forks


class Batcher:
    """Waiting and running sequences over one block manager."""

    def __init__(self, blocks: BlockManager, adapters: AdapterSlots, max_sequences: int, prefill_tokens: int) -> None:
        self.blocks = blocks
        self.adapters = adapters
        self.running: list[Sequence] = []  # in `order`
        self.waiting: deque[Sequence] = deque()  # in `order`
        self.num_sequences: Counter[str] = Counter()  # running and waiting, by tenant
        self._max_sequences = max_sequences
        self._prefill_tokens = prefill_tokens
        self._kept: dict[int, Prompt] = {}  # by arrival: prompts whose blocks wait for samples to fork
        self._fresh: list[int] = []

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the samples of one new request."""
        for sequence in sequences:
            self.waiting.append(sequence)
            self.num_sequences[sequence.prompt.tenant] += 1

    def remove(self, prompt: Prompt) -> None:
        """Forget all sequences of a request and free their blocks."""
        for sequence in [s for s in self.running if s.prompt is prompt]:
            self.finish(sequence)
        for sequence in [s for s in self.waiting if s.prompt is prompt]:
            self._count_out(sequence)
        self.waiting = deque(s for s in self.waiting if s.prompt is not prompt)
        self._drop_kept(prompt)

    def finish(self, sequence: Sequence) -> None:
        """A running sequence ended: free its blocks."""
        self.running.remove(sequence)
        self._leave(sequence)
        self._count_out(sequence)

    def keep_prompt(self, leader: Sequence, logits_V: Tensor) -> None:
        """The leader has computed the prompt: hold it for the samples that have not started."""
        prompt = leader.prompt
        prompt.leader = None
        if prompt.num_unstarted:
            prompt.kept_blocks = leader.blocks[: self.blocks.blocks_for(len(prompt.tokens))]
            prompt.kept_logits = logits_V.clone()
            self.blocks.hold(prompt.kept_blocks)
            self._kept[prompt.arrival] = prompt

    def reserve(self, slices: Iterable[Slice], num_left: Iterable[int], num_steps: int) -> tuple[int, list[int]]:
        """Have blocks for several tokens of sequences that decode, each for at most what it has left.

        Returns the number of steps, fewer where blocks are short, and the blocks taken.
        """
        rows = [(step.sequence, step.start, left) for step, left in zip(slices, num_left, strict=True)]
        counts: list[int] = []
        while num_steps > 1:
            counts = [self.blocks.blocks_for(at + min(left, num_steps)) - len(s.blocks) for s, at, left in rows]
            if sum(counts) <= self.blocks.num_free:
                break
            num_steps //= 2
        fresh: list[int] = []
        if num_steps > 1:
            for (sequence, _, _), count in zip(rows, counts, strict=True):
                if count:
                    taken = self.blocks.allocate(count)
                    assert taken is not None, "room was checked"
                    sequence.blocks += taken
                    fresh += taken
        return num_steps, fresh

    def advance(self, sequence: Sequence, num_computed: int) -> None:
        """So many of its tokens have been computed: the full blocks may be shared from here on."""
        sequence.num_computed = num_computed
        self.blocks.seal(
            sequence.prompt.cache_key, sequence.tokens, sequence.blocks, sequence.digests, sequence.num_computed
        )

    def plan(self, tenants: frozenset[str] | None = None) -> StepPlan:
        """Choose this step's work; afterwards the chosen sequences hold the blocks and adapters they need.

        With `tenants`, sequences of others pause.
        """
        self._fresh = []
        copies: list[tuple[int, int]] = []
        slices = self._plan_decode(copies, tenants)
        budget = self._prefill_tokens
        for sequence in self.running:
            if sequence.is_prefill and budget and _is_served(sequence, tenants):
                slices.append(_prefill_slice(sequence, budget))
                budget -= slices[-1].length
        forks = self._admit(slices, budget, tenants)
        return StepPlan(tuple(copies), tuple(self._fresh), tuple(slices), tuple(forks))

    def _plan_decode(self, copies: list[tuple[int, int]], tenants: frozenset[str] | None) -> list[Slice]:
        """One token of every sequence that has blocks for it; makes room at the cost of the latest."""
        slices: list[Slice] = []
        for sequence in [s for s in self._by_share() if not s.is_prefill and _is_served(s, tenants)]:
            while sequence.blocks and not self._grow(sequence, copies):
                self._make_room(sequence)
            if sequence.blocks:
                slices.append(Slice(sequence, sequence.num_computed, 1))
        return slices

    def _grow(self, sequence: Sequence, copies: list[tuple[int, int]]) -> bool:
        """Have a block of its own for the next token; False where none is free."""
        index = sequence.num_computed // self.blocks.block_tokens
        is_new = index == len(sequence.blocks)
        if not is_new and self.blocks.references(sequence.blocks[index]) == 1:
            return True
        taken = self.blocks.allocate(1)
        if taken is None:
            return False
        if is_new:
            self._fresh += taken
            sequence.blocks += taken
        else:
            shared, sequence.blocks[index] = sequence.blocks[index], taken[0]
            copies.append((shared, taken[0]))
            self.blocks.release([shared])
        return True

    def _make_room(self, sequence: Sequence) -> None:
        """Free something: a kept prompt with blocks of its own, else the last sequence by share."""
        for prompt in reversed(self._kept.values()):
            if any(self.blocks.references(block) == 1 for block in prompt.kept_blocks):
                self._drop_kept(prompt)
                return
        last = self._by_share()[-1]
        if self._kept and last is sequence:
            # Nothing comes free by this, but the block the sequence writes to may cease to be shared.
            self._drop_kept(next(reversed(self._kept.values())))
        else:
            self._preempt(last)

    def _by_share(self) -> list[Sequence]:
        """Running sequences in order: each tenant's first, then each one's second, and so on."""
        if len(self.num_sequences) == 1:
            return list(self.running)
        num_seen: Counter[str] = Counter()
        ranks: dict[Sequence, int] = {}
        for sequence in self.running:
            ranks[sequence] = num_seen[sequence.prompt.tenant]
            num_seen[sequence.prompt.tenant] += 1
        return sorted(self.running, key=ranks.__getitem__)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._leave(sequence)
        sequence.num_computed = 0
        if not sequence.num_generated:
            sequence.prompt.num_unstarted += 1
        place = next((i for i, other in enumerate(self.waiting) if other.order > sequence.order), len(self.waiting))
        self.waiting.insert(place, sequence)

    def _count_out(self, sequence: Sequence) -> None:
        tenant = sequence.prompt.tenant
        self.num_sequences[tenant] -= 1
        if not self.num_sequences[tenant]:
            del self.num_sequences[tenant]

    def _leave(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.digests = [], []
        if prompt.leader is sequence:
            prompt.leader = None
        if prompt.adapter is not None:
            self.adapters.unpin(prompt.adapter)

    def _admit(self, slices: list[Slice], budget: int, tenants: frozenset[str] | None) -> list[Fork]:
        """Start waiting sequences until one finds no room; returns those that fork."""
        num_running = Counter(sequence.prompt.tenant for sequence in self.running)
        queues = self._queues(tenants) if self._may_admit(num_running) else {}
        started: set[Sequence] = set()
        forks: list[Fork] = []
        while (tenant := _fairest(queues, num_running)) is not None:
            sequence = queues[tenant].popleft()
            kept_logits = sequence.prompt.kept_logits  # gone once its last sample has started
            if not self._find_room(sequence, budget, slices, num_running):
                break
            started.add(sequence)
            num_running[tenant] += 1
            insort(self.running, sequence, key=lambda s: s.order)
            if not sequence.num_uncomputed:
                assert kept_logits is not None, "only forks have nothing to compute"
                forks.append(Fork(sequence, kept_logits))
            else:
                slices.append(_prefill_slice(sequence, budget))
                budget -= slices[-1].length
        if started:
            self.waiting = deque(sequence for sequence in self.waiting if sequence not in started)
        return forks

    def _may_admit(self, num_running: Counter[str]) -> bool:
        """Whether there is a place, or a tenant waits that could be given another's."""
        if len(self.running) < self._max_sequences:
            return True
        if len(self.num_sequences) == 1:
            return False
        most = max(num_running.values(), default=0)
        return any(most > num_running[sequence.prompt.tenant] + 1 for sequence in self.waiting)

    def _queues(self, tenants: frozenset[str] | None) -> dict[str, deque[Sequence]]:
        """What waits, by tenant."""
        queues: dict[str, deque[Sequence]] = {}
        for sequence in [s for s in self.waiting if _is_served(s, tenants)]:
            queues.setdefault(sequence.prompt.tenant, deque()).append(sequence)
        return queues

    def _find_room(self, sequence: Sequence, budget: int, slices: list[Slice], num_running: Counter[str]) -> bool:
        """Start a waiting sequence, at the cost of tenants that run more; False where there is no room."""
        if not budget and not _is_fork(sequence):
            return False
        while len(self.running) >= self._max_sequences or not self._start(sequence):
            last = self._by_share()[-1] if self.running else sequence
            if num_running[last.prompt.tenant] <= num_running[sequence.prompt.tenant] + 1:
                return False
            self._preempt(last)
            num_running[last.prompt.tenant] -= 1
            slices[:] = [each for each in slices if each.sequence is not last]
        return True

    def _start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its adapter and blocks; False, and nothing taken, where there is no room."""
        prompt = sequence.prompt
        is_fork = _is_fork(sequence)
        if prompt.adapter is not None and not self.adapters.pin(prompt.adapter):
            return False
        if not (self._fork(sequence) if is_fork else self._take_blocks(sequence)):
            if prompt.adapter is not None:
                self.adapters.unpin(prompt.adapter)
            return False
        if not sequence.num_generated:
            prompt.num_unstarted -= 1
            prompt.leader = None if is_fork else sequence
        if is_fork and not prompt.num_unstarted:
            self._drop_kept(prompt)
        return True

    def _fork(self, sequence: Sequence) -> bool:
        """Share the kept blocks of the prompt."""
        if self.running and not self._has_room(1):
            return False
        prompt = sequence.prompt
        self.blocks.hold(prompt.kept_blocks)
        sequence.blocks = list(prompt.kept_blocks)
        sequence.num_computed = len(prompt.tokens)
        return True

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Blocks for all tokens so far: found ones for the beginning, fresh ones for the rest."""
        prompt, tokens = sequence.prompt, sequence.tokens
        # The last token is always computed: its logits choose the next one. So is every token whose
        # logits the prompt's scores need.
        most = len(tokens) - 1 if prompt.next_scored is None else min(len(tokens) - 1, prompt.next_scored)
        found, digests = self.blocks.find(prompt.cache_key, tokens, most)
        num_fresh = self.blocks.blocks_for(len(tokens)) - len(found)
        while not self._has_room(num_fresh + self.blocks.num_idle(found)):
            if self.running or not self._kept:
                return False
            self._drop_kept(next(reversed(self._kept.values())))
            found, digests = self.blocks.find(prompt.cache_key, tokens, most)
        self.blocks.hold(found)
        fresh = self.blocks.allocate(num_fresh)
        assert fresh is not None, "room was checked"
        self._fresh += fresh
        sequence.blocks, sequence.digests = found + fresh, digests
        sequence.num_computed = len(found) * self.blocks.block_tokens
        if not prompt.has_started:
            prompt.has_started, prompt.num_cached = True, sequence.num_computed
        return True

    def _has_room(self, num_blocks: int) -> bool:
        """Whether so many blocks are free and every running sequence could still grow by one."""
        return self.blocks.num_free >= num_blocks + len(self.running)

    def _drop_kept(self, prompt: Prompt) -> None:
        self._kept.pop(prompt.arrival, None)
        self.blocks.release(prompt.kept_blocks)
        prompt.kept_blocks, prompt.kept_logits = [], None


def _prefill_slice(sequence: Sequence, budget: int) -> Slice:
    return Slice(sequence, sequence.num_computed, min(sequence.num_uncomputed, budget))


def _is_served(sequence: Sequence, tenants: frozenset[str] | None) -> bool:
    return tenants is None or sequence.prompt.tenant in tenants


def _is_fork(sequence: Sequence) -> bool:
    """Whether it starts from its prompt's kept blocks and computes nothing."""
    return bool(sequence.prompt.kept_blocks) and not sequence.num_generated


def _fairest(queues: dict[str, deque[Sequence]], num_running: Counter[str]) -> str | None:
    """The tenant that runs fewest of those with a sequence that can start; the earlier arrival among equals."""
    for queue in queues.values():
        while queue and queue[0].prompt.leader is not None and not queue[0].num_generated:
            queue.popleft()  # its prompt is being computed: nothing to do yet
    able = [tenant for tenant, queue in queues.items() if queue]
    return min(able, key=lambda tenant: (num_running[tenant], queues[tenant][0].order), default=None)
