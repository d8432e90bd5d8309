import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from openrl.protocol import tinker_pb2 as pb
from openrl.rpc.messages import (
    Cancel,
    CloseRun,
    ExecuteDone,
    OpenRun,
    Outcome,
    Report,
    RunLost,
    RunSnapshotted,
    SampleDone,
    Shutdown,
    SnapshotRun,
)
from openrl.sampling.base import FinishedSample, HasNews
from tests.worker.rig import RUN_ID, Rig, execute, open_run, run_spec


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.blobs.close()


@pytest.fixture
def timed_rig(tmp_path: Path) -> Iterator[Rig]:
    """Whoever looks at its clock finds that a millisecond has passed."""
    looks = itertools.count()
    rig = Rig(tmp_path, clock=lambda: next(looks) / 1000)
    yield rig
    rig.blobs.close()


def done(reports: Sequence[Report]) -> list[ExecuteDone]:
    return [report for report in reports if isinstance(report, ExecuteDone)]


def sampled(reports: Sequence[Report]) -> dict[str, Outcome]:
    return {each.request_id: each for report in reports if isinstance(report, SampleDone) for each in report.outcomes}


def test_a_run_is_created_trained_and_stepped(rig: Rig):
    create = rig.item("create_model", {}, 0)
    reports = rig.run(
        open_run(), execute(create, work_id=1), execute(rig.forward_backward(1), work_id=2),
        execute(rig.optim_step(2), work_id=3),
    )  # fmt: skip
    created, passed, stepped = (report.outcomes[0] for report in done(reports))
    assert [report.work_id for report in done(reports)] == [1, 2, 3]
    assert rig.result(created.result_ref)["model_id"] == RUN_ID
    output = pb.ForwardBackwardOutput.FromString(rig.blobs.get_payload(passed.result_ref))
    assert output.metrics["loss:sum"] == 2.0
    assert rig.result(stepped.result_ref)["metrics"] == {"grad_norm": 2.0}
    assert rig.training.weights[RUN_ID] == -1.0


def test_one_request_that_cannot_be_read_fails_alone(rig: Rig):
    broken = rig.item("forward_backward", b"\xff\xff\xff", 2)
    refused = rig.forward_backward(3, loss_fn="refuse")
    good, bad, failed = done(rig.run(open_run(), execute(rig.forward_backward(1), broken, refused)))[0].outcomes
    assert good.result_ref
    assert not good.error
    assert not bad.result_ref
    assert bad.error
    assert bad.category == "user"
    assert failed.error == "datum 0: the loss is not finite"
    assert rig.training.gradients[RUN_ID] == 2.0


def test_an_engine_that_breaks_fails_its_pass_and_the_worker_goes_on(rig: Rig):
    reports = rig.run(
        open_run(), execute(rig.forward_backward(1, loss_fn="explode"), work_id=1),
        execute(rig.forward_backward(2), work_id=2),
    )  # fmt: skip
    first, second = done(reports)
    assert first.outcomes[0].category == "server"
    assert "the device is on fire" in first.outcomes[0].error
    assert second.outcomes[0].result_ref


def test_a_run_that_cannot_be_opened_is_reported_lost_and_its_requests_fail(rig: Rig):
    reports = rig.run(open_run(rank=128), execute(rig.forward_backward(1)))
    assert reports[0] == RunLost(RUN_ID, "opening the run failed: RuntimeError: out of memory")
    assert done(reports)[0].outcomes[0].category == "server"


def test_a_replay_changes_the_run_and_stores_nothing(rig: Rig):
    items = rig.forward_backward(1, is_replay=True), rig.optim_step(2, is_replay=True)
    reports = rig.run(open_run(), execute(items[0], work_id=1), execute(items[1], work_id=2))
    assert all(not each.result_ref and not each.error for report in done(reports) for each in report.outcomes)
    assert rig.training.weights[RUN_ID] == -1.0


def test_a_step_that_fails_on_our_side_uses_up_its_gradient_and_its_replay_does_too(rig: Rig):
    reports = rig.run(
        open_run(), execute(rig.forward_backward(1), work_id=1), execute(rig.optim_step(2, rate=13.0), work_id=2)
    )
    [failed] = done(reports)[1].outcomes
    assert (failed.category, rig.training.gradients[RUN_ID]) == ("server", 0.0)
    other = rig.restarted()
    reports = other.run(
        open_run(), execute(other.forward_backward(1, is_replay=True), work_id=1),
        execute(other.optim_step(2, is_replay=True, has_failed=True), work_id=2),
    )  # fmt: skip
    assert all(not each.result_ref and not each.error for report in done(reports) for each in report.outcomes)
    assert (other.training.weights[RUN_ID], other.training.gradients[RUN_ID]) == (0.0, 0.0)


def test_a_step_that_is_refused_keeps_its_gradient(rig: Rig):
    bad_body = rig.item("optim_step", {"model_id": RUN_ID}, 2)
    reports = rig.run(open_run(), execute(rig.forward_backward(1), work_id=1), execute(bad_body, work_id=2))
    [failed] = done(reports)[1].outcomes
    assert (failed.category, rig.training.gradients[RUN_ID]) == ("user", 2.0)


def test_a_replay_that_fails_loses_the_run(rig: Rig):
    reports = rig.run(open_run(), execute(rig.forward_backward(4, loss_fn="refuse", is_replay=True)))
    lost = [report for report in reports if isinstance(report, RunLost)]
    assert [report.run_id for report in lost] == [RUN_ID]
    assert "request 4" in lost[0].error


def test_a_snapshot_restores_the_run_with_its_gradients_and_names_its_last_request(rig: Rig):
    commands = [
        open_run(),
        execute(rig.forward_backward(1)),
        execute(rig.optim_step(2)),
        execute(rig.forward_backward(3)),
    ]
    reports = rig.run(*commands, SnapshotRun(RUN_ID), CloseRun(RUN_ID))
    [snapshot] = [report for report in reports if isinstance(report, RunSnapshotted)]
    assert (snapshot.run_id, snapshot.seq_id, snapshot.key) == (RUN_ID, 3, f"snapshots/{RUN_ID}/3/first")
    other = rig.restarted()
    other.run(OpenRun(run_spec(), snapshot.key, 3), SnapshotRun(RUN_ID))
    assert (other.training.weights[RUN_ID], other.training.gradients[RUN_ID]) == (-1.0, 2.0)
    assert [report.seq_id for report in other.reports if isinstance(report, RunSnapshotted)] == [3]


def test_device_time_is_shared_out_by_tokens(timed_rig: Rig):
    rig = timed_rig
    small, large = rig.forward_backward(1, length=2), rig.forward_backward(2, length=6)
    first, second = done(rig.run(open_run(), execute(small, large)))[0].outcomes
    assert (first.num_tokens, second.num_tokens) == (4, 12)
    assert second.busy_s == pytest.approx(3 * first.busy_s)
    assert first.busy_s + second.busy_s == pytest.approx(rig.executor.stats().busy_train_s)


def test_samples_and_training_take_turns(timed_rig: Rig):
    rig = timed_rig
    samples = [rig.sample(f"r{i}", [1, 2], max_tokens=20) for i in range(3)]
    rig.run(open_run(), execute(rig.forward_backward(1, num_datums=20)), *samples)
    first_train, last_train = rig.trace.index("train"), len(rig.trace) - 1 - rig.trace[::-1].index("train")
    assert "sample" in rig.trace[first_train:last_train]
    assert rig.trace.count("train") == 20


def test_a_sample_gets_its_result_and_its_share_of_device_time(rig: Rig):
    outcomes = sampled(rig.run(rig.sample("a", [1, 2, 3]), rig.sample("b", [4], max_tokens=2)))
    response = pb.SampleResponse.FromString(rig.blobs.get_payload(outcomes["a"].result_ref))
    assert [np.frombuffer(each.tokens, np.int32).tolist() for each in response.sequences] == [[7] * 4, [7] * 4]
    assert outcomes["a"].busy_s > outcomes["b"].busy_s > 0
    total = outcomes["a"].busy_s + outcomes["b"].busy_s
    assert total == pytest.approx(rig.executor.stats().busy_sample_s)


def test_a_sample_that_cannot_be_added_fails_alone(rig: Rig):
    outcomes = sampled(
        rig.run(rig.sample("bad", []), rig.sample("gone", [1], adapter_key="missing"), rig.sample("a", [1]))
    )
    assert (outcomes["bad"].error, outcomes["bad"].category) == ("the prompt is empty", "user")
    assert outcomes["gone"].error
    assert outcomes["a"].result_ref


def test_a_step_that_breaks_fails_the_jobs_in_it_and_later_ones_run(rig: Rig):
    rig.run(rig.sample("a", [1]), rig.sample("unlucky", [13]))
    outcomes = sampled(rig.reports)
    assert {outcomes["a"].category, outcomes["unlucky"].category} == {"server"}
    assert rig.sampling.jobs == {}


def test_a_cancelled_sample_reports_nothing_and_leaves_the_engine(rig: Rig):
    assert sampled(rig.run(rig.sample("a", [1]), Cancel("a"), Cancel("unknown"))) == {}
    assert rig.sampling.jobs == {}


def test_stats_tell_what_is_resident(rig: Rig):
    rig.run(open_run(), open_run("s2:train:0"))
    assert rig.executor.stats().resident_runs == 2
    assert rig.executor.stats().kv_blocks_total == 100


def test_a_worker_without_work_rests_once_and_works_on(tmp_path: Path):
    rig = Rig(tmp_path, idle_s=0.01)
    thread = threading.Thread(target=rig.executor.run)
    thread.start()
    while "rest" not in rig.trace:
        time.sleep(0.001)
    rig.inbox.put(open_run())
    rig.inbox.put(execute(rig.forward_backward(1)))
    rig.inbox.put(Shutdown())
    thread.join(10.0)
    assert rig.training.gradients[RUN_ID] == 2.0


def test_a_sampling_step_hears_of_what_arrives_meanwhile(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    heard: list[bool] = []
    step = rig.sampling.step

    def listening(has_news: HasNews) -> Sequence[FinishedSample]:
        heard.append(has_news())
        rig.inbox.put(Cancel("nobody"))
        heard.append(has_news())
        return step(has_news)

    monkeypatch.setattr(rig.sampling, "step", listening)
    assert sampled(rig.run(rig.sample("a", [1, 2], max_tokens=2)))["a"].result_ref
    assert heard == [False, True] * 2
