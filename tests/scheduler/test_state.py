from dataclasses import replace

from openrl.protocol.runs import RequestKind
from openrl.rpc.messages import (
    CloseRun,
    Execute,
    ExecuteDone,
    OpenRun,
    Outcome,
    RunLost,
    SnapshotRun,
)
from openrl.scheduler.actions import LoadRun
from openrl.scheduler.events import (
    SessionClosed,
    Tick,
    WorkerReported,
)
from openrl.store.base import RunRow

from .rows import run_row, sample_row, training_row
from .simulation import World


def world_with_runs(*run_ids: str, max_pass_tokens: int = 1000, max_replay_s: float = 100.0) -> World:
    """One worker; the runs are created and opened, tenant "t<i>" for each."""
    world = World(max_replay_s)
    world.join(max_pass_tokens)
    for i, run_id in enumerate(run_ids):
        run = world.add_run(run_row(run_id, tenant_id=f"t{i}"))
        world.submit(training_row(run, 0, "create_model", 0))
    world.settle()
    world.passes.clear()
    return world


def sent_ids(world: World) -> list[list[str]]:
    return [[item.request_id for item in work.items] for work in world.passes]


def submit(world: World, run_id: str, *requests: tuple[int, RequestKind], tokens: int = 100) -> None:
    start = len(world.rows)
    run: RunRow = world.runs[run_id]
    world.submit(*(training_row(run, seq, kind, tokens, start + i) for i, (seq, kind) in enumerate(requests)))


def steps(kind: RequestKind, count: int) -> list[tuple[int, RequestKind]]:
    return [(seq, kind) for seq in range(1, count + 1)]


def test_a_gap_waits_until_the_missing_number_arrives():
    world = world_with_runs("r")
    submit(world, "r", (2, "forward_backward"), (3, "forward_backward"))
    assert world.passes == []
    submit(world, "r", (1, "forward_backward"))
    assert sent_ids(world) == [["r/1", "r/2", "r/3"]]


def test_a_refused_number_is_stepped_over():
    world = world_with_runs("r")
    submit(world, "r", (2, "forward_backward"))
    refused = training_row(world.runs["r"], 1, "forward_backward")
    world.submit(replace(refused, state="failed"))
    assert sent_ids(world) == [["r/2"]]


def test_requests_of_two_tenants_share_a_pass():
    world = world_with_runs("a", "b")
    world.submit(
        training_row(world.runs["a"], 1, "forward_backward", 400, 10),
        training_row(world.runs["b"], 1, "forward_backward", 400, 11),
    )
    assert sent_ids(world) == [["a/1", "b/1"]]


def test_requests_ride_together_but_never_across_another_kind():
    world = world_with_runs("r")
    submit(world, "r", (1, "forward_backward"), (2, "forward_backward"), (3, "optim_step"), (4, "forward_backward"))
    assert sent_ids(world) == [["r/1", "r/2"], ["r/3"]]
    world.settle()
    assert sent_ids(world)[2:] == [["r/4"]]


def test_a_worker_holds_two_passes_at_most():
    world = world_with_runs("r", max_pass_tokens=100)
    submit(world, "r", *steps("forward_backward", 5))
    assert sent_ids(world) == [["r/1"], ["r/2"]]


def test_a_flood_delays_another_tenant_by_the_passes_already_sent_only():
    world = world_with_runs("flood", "b", max_pass_tokens=1000)
    submit(world, "flood", *steps("forward_backward", 199), tokens=1000)
    worker = next(iter(world.workers.values()))
    for _ in range(20):
        world.step(worker)
        world.deliver(worker)
    num_sent = len(world.passes)
    submit(world, "b", (1, "forward_backward"), tokens=1000)
    while "b/1" not in world.finished:
        world.step(worker)
        world.deliver(worker)
    position = sent_ids(world).index(["b/1"])
    assert position == num_sent  # the next one sent


def test_a_newcomer_gets_one_request_on_a_full_worker():
    world = world_with_runs("flood", "b")
    submit(world, "flood", *steps("forward_backward", 9), tokens=1000)
    assert sent_ids(world) == [["flood/1"], ["flood/2"]]
    submit(world, "b", (1, "forward_backward"), (2, "forward_backward"))
    assert sent_ids(world)[2:] == [["b/1"]]
    world.settle()
    assert set(world.finished) >= {"flood/9", "b/2"}


def test_a_newcomers_step_follows_its_gradient_at_once():
    world = world_with_runs("flood", "b")
    submit(world, "flood", *steps("forward_backward", 9), tokens=1000)
    submit(world, "b", (1, "forward_backward"), (2, "optim_step"), (3, "forward_backward"))
    assert sent_ids(world)[2:] == [["b/1"], ["b/2"]]
    world.settle()
    assert set(world.finished) >= {"flood/9", "b/3"}


def test_newcomers_share_the_passes_that_a_full_worker_gets_for_them():
    world = world_with_runs("flood", "b", "c", "d", "e")
    submit(world, "flood", *steps("forward_backward", 9), tokens=1000)
    for run_id in "bcde":
        submit(world, run_id, (1, "forward_backward"), (2, "forward_backward"))
    assert sent_ids(world)[2:] == [["b/1"], ["c/1"]]
    worker = next(iter(world.workers.values()))
    while "b/1" not in world.finished:
        world.step(worker)
        world.deliver(worker)
    assert ["d/1", "e/1"] in sent_ids(world)
    world.settle()
    assert set(world.finished) >= {"flood/9", *(f"{run_id}/2" for run_id in "bcde")}


def test_a_flood_of_steps_without_tokens_does_not_starve_others():
    world = world_with_runs("flood", "b", max_pass_tokens=100)
    submit(world, "flood", *steps("optim_step", 299), tokens=0)
    submit(world, "b", (1, "forward_backward"), tokens=5000)
    world.settle()
    assert sent_ids(world).index(["b/1"]) <= 2


def test_a_run_is_opened_from_its_snapshot_and_its_log_replayed():
    world = world_with_runs("r")
    submit(world, "r", (1, "forward_backward"), (2, "load_weights"))
    world.settle()
    submit(world, "r", (3, "forward_backward"), (4, "forward"), (5, "optim_step"))
    world.settle()
    assert world.runs["r"].snapshot_seq_id == 2
    world.kill(next(iter(world.workers.values())))
    submit(world, "r", (6, "optim_step"))
    world.join()
    world.settle()
    assert world.num_replayed == 2
    assert world.results["r/6"] == [0, 1, 2, 3, 5, 6]


def test_a_snapshot_is_taken_when_the_replay_would_take_too_long():
    world = world_with_runs("r", max_replay_s=2.5)
    submit(world, "r", *steps("forward_backward", 7), tokens=1000)
    world.settle()
    assert world.runs["r"].snapshot_seq_id >= 5


def test_a_save_that_was_in_flight_is_not_overtaken_by_the_replay_of_later_requests():
    world = world_with_runs("r")
    submit(world, "r", (1, "forward_backward"), (2, "save_weights"), (3, "optim_step"))
    worker = next(iter(world.workers.values()))
    for _ in range(4):
        world.step(worker)
    while worker.results_lane:
        world.deliver(worker)
    world.step(worker)
    while worker.results_lane:
        world.deliver(worker)
    assert set(world.finished) == {"r/0", "r/1", "r/3"}
    world.kill(worker)
    world.join()
    world.settle()
    assert world.results["r/2"] == [0, 1]
    assert world.num_replayed == 3


def test_a_snapshot_counts_only_once_every_request_it_covers_has_a_result():
    world = world_with_runs("r", max_replay_s=1.5)
    submit(world, "r", (1, "forward_backward"), (2, "optim_step"))
    worker = next(iter(world.workers.values()))
    world.step(worker)
    world.step(worker)
    world.deliver(worker)
    world.step(worker)  # the snapshot, which request 2 is in
    world.deliver(worker, saves_first=True)
    assert "r/2" not in world.finished
    assert world.runs["r"].snapshot_seq_id == -1
    world.deliver(worker)
    assert world.runs["r"].snapshot_seq_id == 2


def test_a_poisoned_request_fails_after_three_losses_and_its_neighbours_do_not():
    world = world_with_runs("a", "b")
    world.poison.add("a/1")
    world.submit(
        training_row(world.runs["a"], 1, "forward_backward", 100, 10),
        training_row(world.runs["b"], 1, "forward_backward", 100, 11),
    )
    world.submit(sample_row("s", "t1"))
    for _ in range(3):
        world.settle()
        world.join()
    world.settle()
    assert world.num_workers == 4
    assert {key: world.finished[key] for key in ("a/1", "b/1", "s")} == {"a/1": "failed", "b/1": "done", "s": "done"}


def test_load_weights_is_followed_by_a_snapshot():
    world = world_with_runs("r")
    submit(world, "r", (1, "load_weights"))
    world.settle()
    assert world.runs["r"].snapshot_seq_id == 1


def test_a_closed_session_saves_its_runs_and_fails_what_can_never_run():
    world = world_with_runs("r")
    submit(world, "r", (1, "forward_backward"), (3, "forward_backward"))
    world.handle(SessionClosed("s0", ("r",)))
    world.settle()
    assert world.runs["r"].is_closed
    assert world.runs["r"].snapshot_seq_id == 1
    assert (world.finished["r/1"], world.finished["r/3"]) == ("done", "failed")
    assert next(iter(world.workers.values())).runs == {}


def test_unload_answers_after_the_run_was_saved():
    world = world_with_runs("r")
    submit(world, "r", (1, "forward_backward"), (2, "unload_model"))
    world.settle()
    assert world.finished["r/2"] == "done"
    assert world.runs["r"].is_closed
    assert world.runs["r"].snapshot_seq_id == 1


def test_requests_of_a_closed_run_fail():
    world = world_with_runs("r")
    world.handle(SessionClosed("s0", ("r",)))
    world.settle()
    submit(world, "r", (1, "forward_backward"))
    world.settle()
    assert world.finished["r/1"] == "failed"


def test_a_run_that_cannot_be_opened_fails_its_requests_and_is_tried_again_for_the_next():
    world = world_with_runs("r")
    world.kill(next(iter(world.workers.values())))
    submit(world, "r", (1, "forward_backward"), (2, "optim_step"))
    worker = world.join()
    world.answer_load()
    assert isinstance(worker.commands.popleft(), OpenRun)
    world.handle(WorkerReported(worker.worker_id, RunLost("r", "no room")))
    assert world.finished["r/2"] == "failed"
    sent = [command for command in worker.commands if isinstance(command, Execute)]
    worker.commands.clear()
    for command in sent:
        outcomes = tuple(Outcome(item.request_id, error="not open", category="server") for item in command.items)
        worker.unreported -= 1
        world.handle(WorkerReported(worker.worker_id, ExecuteDone(command.work_id, outcomes)))
    assert world.finished["r/1"] == "failed"
    assert worker.commands.popleft() == CloseRun("r")
    submit(world, "r", (3, "forward_backward"))
    world.settle()
    assert world.results["r/3"] == [0, 2, 3]  # the step that failed drops what gradient there is


def test_without_a_worker_for_the_model_a_run_waits():
    world = World()
    world.join(models=("other",))
    run = world.add_run(run_row("r"))
    world.submit(training_row(run, 0, "create_model"))
    world.settle()
    assert world.passes == []
    world.join()
    world.settle()
    assert world.finished == {"r/0": "done"}


def test_an_idle_dirty_run_is_saved_by_a_tick():
    world = world_with_runs("r")
    world.now += 1000
    world.handle(Tick())
    worker = next(iter(world.workers.values()))
    assert list(worker.commands) == [SnapshotRun("r")]


def test_unknown_runs_fail_their_requests():
    world = World()
    world.join()
    world.submit(training_row(run_row("ghost"), 0, "create_model"))
    assert list(world.loads) == [LoadRun("ghost")]
    world.settle()
    assert world.finished == {"ghost/0": "failed"}


def test_closing_a_run_that_has_nothing_to_save_needs_no_worker():
    world = World()
    world.add_run(run_row("r"))
    world.handle(SessionClosed("s0", ("r",)))
    world.settle()
    assert world.runs["r"].is_closed
