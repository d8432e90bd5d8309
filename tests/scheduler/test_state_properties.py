"""Random traces of arrivals, crashes, cancels and delays against the twin in simulation.py."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openrl.config import WorkerRole
from openrl.protocol.runs import TrainingKind
from openrl.scheduler.events import RequestCancelled, RequestsArrived, SessionClosed, Tick
from openrl.store.base import RequestRow

from .rows import run_row, sample_row, training_row
from .simulation import World

KINDS: tuple[TrainingKind, ...] = (
    "forward_backward",
    "forward_backward",
    "forward_backward",
    "optim_step",
    "optim_step",
    "forward",
    "save_weights",
    "load_weights",
)
ROLES: tuple[WorkerRole, ...] = ("both", "both", "train", "sample")
TENANTS = ("t0", "t1", "t2")


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(max_replay_s=st.sampled_from([0.5, 3.0, 100.0]))
    def start(self, max_replay_s: float) -> None:
        self.world = World(max_replay_s)
        self.next_seq: dict[str, int] = {}
        self.held_back: list[RequestRow] = []  # on their way from the client
        self.position = 0
        self.num_kills = 0
        self.world.join()

    def _row(self, run_id: str, kind: TrainingKind, tokens: int) -> RequestRow:
        self.position += 1
        seq_id = self.next_seq[run_id]
        self.next_seq[run_id] += 1
        return training_row(self.world.runs[run_id], seq_id, kind, tokens, self.position)

    @precondition(lambda self: len(self.next_seq) < 6)
    @rule(tenant=st.sampled_from(TENANTS), session=st.sampled_from(["s0", "s1"]))
    def create_run(self, tenant: str, session: str) -> None:
        run = self.world.add_run(run_row(f"r{len(self.next_seq)}", tenant, session))
        self.next_seq[run.spec.run_id] = 0
        self.world.submit(self._row(run.spec.run_id, "create_model", 0))

    @precondition(lambda self: bool(self._open_runs()))
    @rule(
        data=st.data(),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        tokens=st.sampled_from([10, 300, 900, 2000]),
        fate=st.sampled_from(["plain"] * 12 + ["bad", "refused", "poison", "blown", "blown"]),
    )
    def submit(self, data: st.DataObject, kinds: list[TrainingKind], tokens: int, fate: str) -> None:
        rows = [self._row(data.draw(st.sampled_from(self._open_runs())), kind, tokens) for kind in kinds]
        if fate == "bad":
            self.world.bad.add(rows[0].request_id)
        if fate == "poison":
            self.world.poison.add(rows[0].request_id)
        if fate == "blown":
            self.world.blown |= {row.request_id for row in rows if row.kind == "optim_step"}
        self.held_back += rows

    @precondition(lambda self: bool(self.held_back))
    @rule(data=st.data(), count=st.integers(1, 3))
    def arrive(self, data: st.DataObject, count: int) -> None:
        rows = [
            self.held_back.pop(data.draw(st.integers(0, len(self.held_back) - 1)))
            for _ in range(min(count, len(self.held_back)))
        ]
        open_runs = set(self._open_runs())
        self.world.submit(*(row for row in rows if row.run_id in open_runs))

    @precondition(lambda self: bool(self.world.rows))
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        row = self.world.rows[data.draw(st.sampled_from(sorted(self.world.rows)))]
        if row.request_id not in self.world.finished:
            self.world.handle(RequestsArrived((row,)))

    @rule(tenant=st.sampled_from(TENANTS), num_sequences=st.sampled_from([1, 1, 3, 9]), count=st.integers(1, 4))
    def sample(self, tenant: str, num_sequences: int, count: int) -> None:
        for _ in range(count):
            self.position += 1
            self.world.submit(sample_row(f"sample{self.position}", tenant, num_sequences, self.position))

    @precondition(lambda self: bool(self.world.rows))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.handle(RequestCancelled(data.draw(st.sampled_from(sorted(self.world.rows)))))

    @precondition(lambda self: bool(self.world.loads))
    @rule()
    def answer_load(self) -> None:
        self.world.answer_load()

    @precondition(lambda self: bool(self.world.workers))
    @rule(data=st.data(), count=st.integers(1, 3))
    def work(self, data: st.DataObject, count: int) -> None:
        worker = self.world.workers[data.draw(st.sampled_from(sorted(self.world.workers)))]
        for _ in range(count):
            if worker.worker_id in self.world.workers:
                self.world.step(worker)

    @precondition(lambda self: bool(self.world.workers))
    @rule(data=st.data(), saves_first=st.booleans())
    def deliver(self, data: st.DataObject, saves_first: bool) -> None:
        worker = self.world.workers[data.draw(st.sampled_from(sorted(self.world.workers)))]
        self.world.deliver(worker, saves_first=saves_first)

    @precondition(lambda self: bool(self.world.workers) and self.num_kills < 2)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.num_kills += 1  # few enough that an innocent request is never failed for it
        self.world.kill(self.world.workers[data.draw(st.sampled_from(sorted(self.world.workers)))])

    @precondition(lambda self: len(self.world.workers) > 1)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        worker = self.world.workers[data.draw(st.sampled_from(sorted(self.world.workers)))]
        if worker.stays or not worker.is_draining:
            self.world.drain(worker)

    @precondition(lambda self: len(self.world.workers) > 1)
    @rule(data=st.data(), is_draining=st.booleans())
    def ask_to_drain(self, data: st.DataObject, is_draining: bool) -> None:
        worker = self.world.workers[data.draw(st.sampled_from(sorted(self.world.workers)))]
        if worker.stays or not worker.is_draining:
            self.world.ask_to_drain(worker, is_draining=is_draining)

    @precondition(lambda self: len(self.world.workers) < 3)
    @rule(role=st.sampled_from(ROLES))
    def join(self, role: WorkerRole) -> None:
        self.world.join(role=role)

    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.handle(Tick())

    @rule(session=st.sampled_from(["s1"]))
    def close_session(self, session: str) -> None:
        live = [run.spec.run_id for run in self.world.runs.values() if run.session_id == session and not run.is_closed]
        self.world.handle(SessionClosed(session, tuple(live)))

    @invariant()
    def no_worker_is_idle_while_work_could_start(self) -> None:
        self.world.check_no_idle_worker()

    def _open_runs(self) -> list[str]:
        return [run_id for run_id in self.next_seq if not self.world.runs[run_id].is_closed]

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for row in self.held_back:
            if row.run_id in self._open_runs():
                self.world.submit(row)
        for _ in range(40):  # a poisoned request takes a worker with it each time
            if not self.world.can_do_all():
                self.world.join()
            self.world.settle()
            for worker in self.world.workers.values():
                assert not worker.is_draining or (worker.stays and not worker.runs and not worker.samples)
            if self.world.can_do_all():
                break
        unfinished = set(self.world.rows) - set(self.world.finished)
        assert not unfinished, f"never finished: {sorted(unfinished)}"
        self.world.check_results()
        innocent = {key for key, state in self.world.finished.items() if state == "failed"}
        innocent -= self.world.bad | self.world.poison | self.world.blown
        closed = {run.spec.run_id for run in self.world.runs.values() if run.is_closed}
        assert not {key for key in innocent if self.world.rows[key].run_id not in closed}


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
