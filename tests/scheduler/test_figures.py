from openrl.scheduler.events import Tick
from openrl.scheduler.figures import Unsaved
from openrl.scheduler.state import SchedulerState
from tests.scheduler.rows import run_row, sample_row, training_row
from tests.scheduler.simulation import World


def test_what_waits_is_counted_by_kind_with_the_age_of_the_oldest():
    world = World()
    run = world.add_run(run_row("r"))
    world.submit(training_row(run, 0, "create_model"), training_row(run, 1, "forward_backward"), sample_row("a"))
    figures = world.state.figures(world.now, 30.0)
    assert figures.num_waiting == {"create_model": 1, "forward_backward": 1, "sample": 1}
    assert figures.oldest_waiting_s == {"create_model": 30.0, "forward_backward": 30.0, "sample": 30.0}
    assert (figures.num_workers, figures.num_live_runs) == (0, 1)
    world.join()
    world.settle()
    figures = world.state.figures(world.now, 30.0)
    assert not figures.num_waiting
    assert (figures.num_workers, figures.num_live_runs) == (1, 1)


def test_a_change_is_unsaved_until_a_snapshot_covers_it():
    world = World(max_replay_s=100.0)
    run = world.add_run(run_row("r"))
    worker = world.join()
    world.submit(training_row(run, 0, "create_model"), training_row(run, 1, "forward_backward", position=1))
    world.settle()
    unsaved = world.state.figures(world.now + 100.0, 0.0).unsaved[worker.worker_id]
    assert unsaved.age_s > 100.0
    assert unsaved.replay_s > 0.0
    world.now += 100.0
    world.handle(Tick())  # the run is idle, so it is saved
    world.settle()
    assert world.state.figures(world.now, 0.0).unsaved == {worker.worker_id: Unsaved()}


def test_the_age_of_what_a_replay_would_do_again_starts_with_its_loading():
    world = World(max_replay_s=100.0)
    run = world.add_run(run_row("r"))
    worker = world.join()
    world.submit(training_row(run, 0, "create_model"), training_row(run, 1, "forward_backward", position=1))
    world.settle()
    world.kill(worker)
    world.submit(training_row(run, 2, "forward_backward", position=2))
    second = world.join()
    world.settle()
    unsaved = world.state.figures(world.now, 0.0).unsaved
    assert list(unsaved) == [second.worker_id]
    assert 0.0 < unsaved[second.worker_id].age_s < world.now


def test_an_empty_state_has_no_figures():
    figures = SchedulerState(1.0).figures(5.0, 5.0)
    assert (figures.num_workers, figures.num_live_runs, figures.unsaved) == (0, 0, {})


def test_the_queues_wait_is_that_of_what_a_worker_with_room_could_take():
    world = World()
    runs = [world.add_run(run_row(f"r{number}", f"t{number % 2}")) for number in range(6)]
    world.submit(*(training_row(run, 0, "create_model") for run in runs))
    assert world.state.queue_wait_s(world.now, 30.0) == 0.0, "no worker has the model"
    world.join()
    world.settle()
    world.submit(*(training_row(runs[0], seq_id, "forward_backward", position=seq_id) for seq_id in (1, 2)))
    assert world.state.queue_wait_s(world.now + 5.0, 30.0) == 0.0, "the second is behind its own run's first"
    for position, run in enumerate(runs[1:], 3):
        world.submit(training_row(run, 1, "forward_backward", position=position))
    assert world.state.queue_wait_s(world.now + 5.0, 30.0) >= 5.0
    world.settle()
    assert world.state.queue_wait_s(world.now + 5.0, 30.0) == 0.0
