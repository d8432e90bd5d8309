"""The batcher keeps its promises on blocks, order and progress, without any tensor work."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest
import torch

from openrl.sampling.adapters import AdapterSlots
from openrl.sampling.batcher import Batcher, StepPlan
from openrl.sampling.block_manager import BlockManager
from openrl.sampling.sequence import Prompt, Sequence

BLOCK = 4
KEY = b"k" * 16
LOGITS = torch.zeros(1)


@dataclass
class Bench:
    """A batcher whose model is this: every computed sequence gets token 1 until it is `lengths` long."""

    num_blocks: int
    max_sequences: int = 8
    prefill_tokens: int = 16
    num_adapters: int = 2
    lengths: dict[Sequence, int] = field(default_factory=dict[Sequence, int])
    finished: list[Sequence] = field(default_factory=list[Sequence])
    num_arrived: int = 0

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, BLOCK)
        self.slots = AdapterSlots(self.num_adapters)
        self.batcher = Batcher(self.blocks, self.slots, self.max_sequences, self.prefill_tokens)

    def add(
        self,
        prompt: list[int],
        num_new: int = 1,
        num_samples: int = 1,
        adapter: str | None = None,
        scored: int | None = None,
        tenant: str = "",
    ) -> list[Sequence]:
        shared = Prompt(self.num_arrived, prompt, adapter, KEY, num_samples, next_scored=scored, tenant=tenant)
        self.num_arrived += 1
        sequences = [Sequence(shared, index, list(prompt)) for index in range(num_samples)]
        self.lengths |= {sequence: len(prompt) + num_new for sequence in sequences}
        self.batcher.add(sequences)
        return sequences

    def step(self, tenants: frozenset[str] | None = None) -> StepPlan:
        """Plan, check the plan, and pretend to compute it."""
        plan = self.batcher.plan(tenants)
        check(self, plan, tenants)
        for each in plan.slices:
            self.batcher.advance(each.sequence, each.start + each.length)
        complete = [each.sequence for each in plan.slices if each.is_last]
        for sequence in complete:
            if sequence.prompt.leader is sequence:
                self.batcher.keep_prompt(sequence, LOGITS)
        for sequence in [*complete, *(fork.sequence for fork in plan.forks)]:
            sequence.tokens.append(1)
            if len(sequence.tokens) == self.lengths[sequence]:
                self.batcher.finish(sequence)
                self.finished.append(sequence)
        return plan

    def drain(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.batcher.waiting and not self.batcher.running:
                return
            self.step()
        raise AssertionError("no progress")


def check(bench: Bench, plan: StepPlan, tenants: frozenset[str] | None = None) -> None:
    """Every promise that holds for each plan."""
    blocks, running = bench.blocks, bench.batcher.running
    assert not plan.is_empty or tenants is not None, "work is waiting, so some of it is done"
    assert bench.batcher.num_sequences == Counter(s.prompt.tenant for s in (*running, *bench.batcher.waiting))
    assert len({target for _, target in plan.copies}) == len(plan.copies)
    assert len(running) <= bench.max_sequences
    assert [s.order for s in running] == sorted(s.order for s in running)
    assert [s.order for s in bench.batcher.waiting] == sorted(s.order for s in bench.batcher.waiting)
    assert sum(s.length for s in plan.slices if s.length > 1) <= bench.prefill_tokens
    chosen = [s.sequence for s in plan.slices] + [fork.sequence for fork in plan.forks]
    assert tenants is None or {sequence.prompt.tenant for sequence in chosen} <= tenants
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(running)
    for each in plan.slices:
        assert each.start == each.sequence.num_computed
        assert each.start + each.length <= len(each.sequence.blocks) * BLOCK
        written = range(each.start // BLOCK, (each.start + each.length - 1) // BLOCK + 1)
        # A block that is written belongs to its sequence alone; the prompt's own holders are not counted in running.
        assert all(blocks.references(each.sequence.blocks[index]) == 1 for index in written)
    if running:
        assert all(s.prompt.adapter is None or bench.slots.slot(s.prompt.adapter) >= 0 for s in running)


def test_decode_comes_first_and_prompts_are_cut_to_the_budget():
    bench = Bench(num_blocks=64, prefill_tokens=10)
    (old,) = bench.add([1] * 6, num_new=9)
    bench.step()
    (young,) = bench.add([2] * 25, num_new=2)
    plans = [bench.step() for _ in range(3)]
    assert [[(s.sequence is old, s.length) for s in plan.slices] for plan in plans] == [
        [(True, 1), (False, 10)],
        [(True, 1), (False, 10)],
        [(True, 1), (False, 5)],
    ]
    assert young.num_generated == 1


def test_a_single_request_is_started_at_once():
    bench = Bench(num_blocks=64)
    bench.add([1, 2, 3])
    assert len(bench.step().slices) == 1


def test_samples_of_one_prompt_share_its_blocks_and_compute_it_once():
    bench = Bench(num_blocks=64)
    sequences = bench.add(list(range(10)), num_new=4, num_samples=5)
    first = bench.step()
    assert [(s.start, s.length) for s in first.slices] == [(0, 10)]
    second = bench.step()
    assert [fork.sequence for fork in second.forks] == sequences[1:]
    assert [s.sequence for s in second.slices] == sequences[:1]
    third = bench.step()
    # Each writes into the half-full third block: all but one sample copy it. Full blocks are never copied.
    assert len(third.copies) + len(second.copies) == 4
    assert len({tuple(s.blocks[:2]) for s in sequences}) == 1
    bench.drain()
    assert bench.blocks.num_used == 0


def test_a_later_request_finds_the_prefix_of_an_earlier_one():
    bench = Bench(num_blocks=64)
    bench.add(list(range(12)))
    bench.drain()
    (later,) = bench.add([*range(12), 99])
    plan = bench.step()
    assert [(s.start, s.length) for s in plan.slices] == [(12, 1)]
    assert later.prompt.num_cached == 12


def test_positions_that_must_be_scored_are_computed_although_they_are_cached():
    bench = Bench(num_blocks=64, prefill_tokens=64)
    bench.add(list(range(20)))
    bench.drain()
    bench.add(list(range(20)), scored=0)
    assert [(s.start, s.length) for s in bench.step().slices] == [(0, 20)]
    bench.add(list(range(20)), scored=9)
    assert [(s.start, s.length) for s in bench.step().slices] == [(8, 12)]


def test_the_latest_sequence_gives_way_and_is_finished_later():
    bench = Bench(num_blocks=6)
    (old,) = bench.add([1] * 7, num_new=14)
    (young,) = bench.add([2] * 7, num_new=14)
    bench.step()
    assert len(bench.batcher.running) == 2
    bench.drain()
    assert bench.finished == [old, young]
    assert bench.blocks.num_used == 0


def test_requests_wait_in_order_while_all_adapter_slots_are_pinned():
    bench = Bench(num_blocks=64, num_adapters=2)
    for adapter in ("a", "b", "c", "a"):
        bench.add([1, 2, 3], num_new=3, adapter=adapter)
    bench.step()
    assert [s.prompt.adapter for s in bench.batcher.running] == ["a", "b"]
    bench.drain()
    assert bench.slots.num_pinned == 0


def test_a_removed_request_leaves_nothing_behind():
    bench = Bench(num_blocks=64, max_sequences=3)
    sequences = bench.add(list(range(10)), num_new=5, num_samples=6, adapter="a")
    bench.step()
    bench.step()
    bench.batcher.remove(sequences[0].prompt)
    assert bench.blocks.num_used == 0
    assert bench.slots.num_pinned == 0
    assert not bench.batcher.waiting


def test_samples_of_a_prompt_that_fills_the_cache_still_finish():
    bench = Bench(num_blocks=4)
    bench.add([1] * 14, num_new=2, num_samples=3)
    bench.drain()
    assert len(bench.finished) == 3


def num_running(bench: Bench) -> dict[str, int]:
    return dict(Counter(sequence.prompt.tenant for sequence in bench.batcher.running))


def test_a_tenant_takes_its_part_of_a_full_batch_at_once_and_the_other_goes_on_later():
    bench = Bench(num_blocks=64, max_sequences=4)
    flood = [bench.add([1, 2, 3], num_new=9, tenant="alice")[0] for _ in range(6)]
    bench.step()
    assert num_running(bench) == {"alice": 4}
    (first,) = bench.add([4, 5], num_new=3, tenant="bob")
    bench.step()
    assert num_running(bench) == {"alice": 3, "bob": 1}
    more = [bench.add([6, 7], num_new=3, tenant="bob")[0] for _ in range(5)]
    bench.step()
    assert num_running(bench) == {"alice": 2, "bob": 2}
    bench.drain()
    assert bench.finished[:3] == [first, *more[:2]]
    assert set(bench.finished) == {first, *more, *flood}


def test_where_blocks_run_out_the_tenant_that_runs_most_gives_way():
    bench = Bench(num_blocks=12)
    flood = [bench.add([tenant_token] * 7, num_new=14, tenant="alice")[0] for tenant_token in range(3)]
    bench.step()
    (single,) = bench.add([9] * 7, num_new=14, tenant="bob")
    bench.drain()
    assert bench.finished.index(single) <= 1
    assert set(bench.finished) == {*flood, single}


def test_others_pause_while_some_tenants_have_a_step_of_their_own():
    bench = Bench(num_blocks=64)
    (alice,), (bob,) = (bench.add([1, 2, 3], num_new=5, tenant=tenant) for tenant in ("alice", "bob"))
    bench.step()
    waiting = bench.add([7], num_new=5, tenant="alice")[0]
    plan = bench.step(frozenset(["bob"]))
    assert [each.sequence for each in plan.slices] == [bob]
    assert (alice.num_generated, bob.num_generated, waiting.num_generated) == (1, 2, 0)
    assert bench.batcher.plan(frozenset(["carol"])).is_empty
    bench.drain()
    assert len(bench.finished) == 3


@pytest.mark.parametrize("seed", range(24))
def test_random_loads_finish_on_a_small_cache_and_leave_it_empty(seed: int):
    random = Random(seed)
    bench = Bench(
        num_blocks=random.choice([8, 11, 30]),
        max_sequences=random.choice([1, 3, 8]),
        prefill_tokens=random.choice([1, 5, 16]),
    )
    tenants = ["alice", "bob", "carol"][: 1 + seed % 3]
    total = 0
    for _ in range(60):
        num_new = random.randrange(1, 12)
        prompt = [random.randrange(2) for _ in range(random.randrange(1, 33 - num_new))]
        num_samples = random.choice([1, 1, 2, 5])
        scored = random.choice([None, None, 0, len(prompt) // 2])
        tenant = random.choice(tenants)
        bench.add(prompt, num_new, num_samples, random.choice([None, "a", "b", "c"]), scored, tenant)
        total += num_samples
        for _ in range(random.randrange(3)):
            if bench.batcher.waiting or bench.batcher.running:
                bench.step(random.choice([None, frozenset(tenants[:1])]))
    bench.drain(20000)
    assert len(bench.finished) == total
    assert bench.blocks.num_used == 0
    assert bench.slots.num_pinned == 0
