"""Quotas and weights in the whole of the scheduler's state."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.rpc.messages import Execute, ExecuteDone, Outcome, Sample, SetTenantShares
from openrl.scheduler.actions import SendCommand
from openrl.scheduler.events import QuotasRead, WorkerJoined, WorkerReported
from openrl.scheduler.state import SchedulerState
from openrl.store.quotas import NO_LIMITS, Limits, QuotaRow
from openrl.worker.training_turns import TrainingTurns
from openrl.worker.training_work import TrainingWork

from .rows import run_row, sample_row, training_row
from .simulation import World
from .test_state import sent_ids, steps, submit, world_with_runs


def quotas(*rows: tuple[str, Limits], weight: float | None = None) -> QuotasRead:
    return QuotasRead(tuple(QuotaRow(tenant_id, "", limits, 0.0, weight) for tenant_id, limits in rows))


def weights(**shares: float) -> QuotasRead:
    return QuotasRead(tuple(QuotaRow(tenant_id, "", NO_LIMITS, 0.0, share) for tenant_id, share in shares.items()))


def test_a_paused_tenants_training_waits_in_order_and_the_others_goes_on():
    world = world_with_runs("a", "b")
    world.handle(quotas(("t0", Limits(tokens_per_s=1, burst_tokens=150))))
    submit(world, "a", *steps("forward_backward", 3), (4, "optim_step"))
    submit(world, "b", *steps("forward_backward", 3))
    (worker,) = world.workers.values()
    for _ in range(8):
        world.step(worker)
        world.deliver(worker)
    done = {name for name in world.finished if name.endswith(("/1", "/2", "/3", "/4"))}
    assert done == {"a/1", "a/2", "b/1", "b/2", "b/3"}
    assert "tokens_per_s" in world.state.pauses()["t0"].reason
    paused_at = world.now
    world.settle()
    assert {"a/3", "a/4"} <= world.finished.keys()
    assert world.now - paused_at >= 40
    assert [ids for ids in sent_ids(world) if ids[0].startswith("a")][-2:] == [["a/3"], ["a/4"]]
    assert world.state.pauses() == {}


def test_only_what_a_worker_has_in_hand_runs_after_the_device_time_is_used_up():
    world = world_with_runs("a", "b")
    world.handle(quotas(("t0", Limits(gpu_seconds_day=1.5))))  # making the run took 1
    world.submit(*(sample_row(f"x{n}", num_sequences=2, position=100 + n) for n in range(9)))
    world.submit(*(sample_row(f"y{n}", "t1", num_sequences=2, position=200 + n) for n in range(9)))
    submit(world, "a", *steps("forward_backward", 6), tokens=600)
    world.answer_load()
    world.answer_load()
    (worker,) = world.workers.values()
    in_hand = {item.request_id for each in world.passes for item in each.items}
    in_hand |= {command.item.request_id for command in worker.commands if isinstance(command, Sample)}
    for _ in range(200):
        world.step(worker)
        world.deliver(worker)
    mine = {name for name in world.finished if name.startswith(("x", "a/")) and name != "a/0"}
    assert mine <= in_hand
    assert 0 < len(mine) < 15
    assert all(f"y{n}" in world.finished for n in range(9))
    assert "gpu_seconds_day" in world.state.pauses()["t0"].reason
    world.handle(quotas(("t0", Limits(gpu_seconds_day=1e9))))
    world.settle()
    assert all(name in world.finished for name in world.rows)
    world.check_results()


def serve(world: World, num_passes: int) -> Counter[str]:
    """Passes of each tenant while all of them always have work; the worker divides its device as the real one does."""
    (worker,) = world.workers.values()
    turns, counts = TrainingTurns(), Counter[str]()
    for tenant_id in ("t0", "t1"):
        turns.arrive([tenant_id])
    for _ in range(num_passes):
        for command in worker.commands:
            if isinstance(command, SetTenantShares):
                turns.set_shares(command.tenant_shares)
        executes = [command for command in worker.commands if isinstance(command, Execute)]
        first = {command.items[0].run_id: command for command in reversed(executes)}  # in order within a run
        works = [TrainingWork(command, executes.index(command)) for command in first.values()]
        work = turns.choose(works, None)
        turns.charge(work.parts, 1.0)
        counts.update(work.parts.keys())
        worker.unreported -= 1
        assert isinstance(work.command, Execute)
        outcomes = tuple(Outcome(item.request_id, "r", busy_s=1.0) for item in work.command.items)
        worker.commands.remove(work.command)
        world.handle(WorkerReported(worker.worker_id, ExecuteDone(work.command.work_id, outcomes)))
    return counts


@pytest.mark.parametrize("share", [1.0, 2.0, 4.0])
def test_weights_give_proportional_shares_and_change_without_a_restart(share: float):
    world = world_with_runs("a", "b")
    for first in range(0, 400, 20):
        for run_id in ("a", "b"):
            submit(world, run_id, *steps("forward_backward", first + 20)[first:], tokens=1000)
    world.handle(weights(t0=share))
    serve(world, 10)
    counts = serve(world, 100)
    assert counts["t0"] / counts["t1"] == pytest.approx(share, rel=0.1)
    world.handle(weights(t1=share))
    serve(world, 10)
    counts = serve(world, 100)
    assert counts["t1"] / counts["t0"] == pytest.approx(share, rel=0.1)


def test_workers_are_told_of_weights_those_that_come_later_too():
    world = world_with_runs("a")
    ready = next(iter(world.workers.values())).ready
    state = SchedulerState(1.0, {"t0": 3.0})
    assert state.handle(WorkerJoined("w1", ready), 0.0) == []  # it has the same configuration
    told = SetTenantShares({"t0": 3.0, "t1": 2.0})
    assert state.handle(weights(t1=2.0), 1.0) == [SendCommand("w1", told)]
    assert state.handle(weights(t1=2.0), 2.0) == []
    assert state.handle(WorkerJoined("w2", ready), 3.0) == [SendCommand("w2", told)]
    back = [SendCommand(name, SetTenantShares({"t0": 3.0})) for name in ("w1", "w2")]
    assert state.handle(weights(), 4.0) == back


LIMITS = st.builds(
    Limits,
    tokens_per_s=st.one_of(st.none(), st.floats(5, 50)),
    running_requests=st.one_of(st.none(), st.integers(1, 3)),
    gpu_seconds_day=st.one_of(st.none(), st.floats(0.5, 5)),
)


@given(
    limits=LIMITS,
    later=LIMITS,
    work=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 900)), min_size=1, max_size=30),
    kill_after=st.integers(0, 12),
)
@settings(max_examples=80, deadline=None)
def test_under_any_quotas_all_is_done_once_and_in_order(
    limits: Limits, later: Limits, work: list[tuple[int, bool, int]], kill_after: int
):
    world = World(100.0)
    worker = world.join()
    world.handle(quotas(("t0", limits)))
    runs = [world.add_run(run_row(f"r{n}", f"t{n % 2}")) for n in range(3)]
    world.submit(*(training_row(run, 0, "create_model", 0) for run in runs))
    next_seq = [1, 1, 1]
    for position, (place, is_sample, tokens) in enumerate(work, start=10):
        if is_sample:
            world.submit(sample_row(f"s{position}", f"t{place % 2}", 1 + tokens % 3, position))
            continue
        kind = "optim_step" if next_seq[place] % 3 == 0 else "forward_backward"
        world.submit(training_row(runs[place], next_seq[place], kind, tokens, position))
        next_seq[place] += 1
    for _ in range(kill_after):
        if world.loads:
            world.answer_load()
        world.step(worker)
        world.deliver(worker)
    world.kill(worker)
    world.handle(quotas(("t0", later)))
    world.join()
    world.settle()
    assert world.finished.keys() == world.rows.keys()
    world.check_results()
