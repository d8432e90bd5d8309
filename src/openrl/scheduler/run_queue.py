"""One run's requests in the order of their numbers: what may be sent next, what must be replayed.

Requests execute in `seq_id` order from 0. A missing number stops the run until it arrives; a number
that has finished in any way (done, failed, cancelled, refused on arrival) is stepped over. Several
may be on the worker at once, so a larger number may finish before a smaller one; after a worker
loss such finished requests are replayed around the unfinished one, each in its place.
"""

from collections import deque
from dataclasses import dataclass, field

from openrl.protocol.runs import TrainingKind, changes_run
from openrl.rpc.messages import Outcome, RunSnapshotted
from openrl.scheduler.events import RunLoaded
from openrl.store.base import RequestRow, RunRow


@dataclass(slots=True)
class RunQueue:
    """What the scheduler knows of one run."""

    run_id: str
    row: RunRow | None = None  # None until loaded
    worker_id: str | None = None  # where it is resident
    next_seq: int = 0  # the smallest number that has not finished
    send_seq: int = 0  # the smallest number that has neither finished nor been sent
    finished: set[int] = field(default_factory=set[int])  # numbers above next_seq that have finished
    waiting: dict[int, RequestRow] = field(default_factory=dict[int, RequestRow])
    sent: dict[int, RequestRow] = field(default_factory=dict[int, RequestRow])
    replay: deque[RequestRow] = field(default_factory=deque[RequestRow])
    replaying: dict[int, RequestRow] = field(default_factory=dict[int, RequestRow])
    unsaved_s: dict[int, float] = field(default_factory=dict[int, float])  # device time of the log by number
    unsaved_total_s: float = 0.0
    unsaved_at: dict[int, float] = field(default_factory=dict[int, float])  # when these ended, or were loaded
    is_loading: bool = False
    is_closing: bool = False
    unload: RequestRow | None = None  # closes the run once everything before it is done and saved
    lost_reason: str = ""  # the worker gave the run up; set until nothing of it is in flight
    snapshot_due: bool = False
    snapshot_is_out: bool = False
    snapshot_pending: RunSnapshotted | None = None  # durable, but a number it covers has not been reported
    num_snapshot_failures: int = 0
    snapshot_not_before: float = 0.0
    num_replay_losses: int = 0
    changed_at: float = 0.0  # when a request last ended
    queued_in: tuple[str, TrainingKind] | None = None  # the worker's queue that holds the run's head
    queued_head: str = ""  # request id of that head

    def accept(self, request: RequestRow) -> bool:
        """Take a request that arrived; False if its number is known already."""
        seq_id = request.seq_id
        if request.kind == "unload_model" and request.state == "queued" and self.unload is None:
            self.unload = request
            self.is_closing = True
            return True
        if self.unload is not None and request.request_id == self.unload.request_id:
            return False
        if seq_id < self.next_seq or seq_id in self.finished or seq_id in self.waiting or seq_id in self.sent:
            return False
        if request.state != "queued":
            self.mark_finished(seq_id)
            return False
        self.waiting[seq_id] = request
        return True

    def load(self, loaded: RunLoaded, now: float = 0.0) -> list[RequestRow]:
        """Take the durable state; returns waiting requests that turn out to have finished."""
        self.is_loading = False
        self.row = loaded.run
        self.next_seq = max(self.next_seq, loaded.next_seq)
        self.finished = {seq for seq in self.finished | loaded.finished if seq >= self.next_seq}
        self._step_over_finished()
        self.send_seq = self.next_seq
        self.replay = deque(loaded.log)
        self.unsaved_s = {request.seq_id: 0.0 for request in loaded.log}
        self.unsaved_total_s = 0.0
        self.unsaved_at = dict.fromkeys(self.unsaved_s, now)
        known = [seq for seq in self.waiting if seq < self.next_seq or seq in self.finished]
        return [self.waiting.pop(seq) for seq in known]

    def head(self) -> tuple[RequestRow, bool] | None:
        """The request to send next and whether it is a replay; None when the run has to wait."""
        self.send_seq = max(self.send_seq, self.next_seq)
        while self.send_seq in self.finished or self.send_seq in self.sent:
            self.send_seq += 1
        if self.replay and self.replay[0].seq_id < self.send_seq:
            return self.replay[0], True
        request = self.waiting.get(self.send_seq)
        if request is not None:
            return request, False
        if self.unload is not None and self.is_drained() and not self.unsaved_s and self.unload.seq_id not in self.sent:
            return self.unload, False
        return None

    def send_head(self) -> tuple[RequestRow, bool]:
        """Move the head to what the worker has."""
        head = self.head()
        assert head is not None, f"run {self.run_id} has nothing to send"
        request, is_replay = head
        if is_replay:
            self.replay.popleft()
            self.replaying[request.seq_id] = request
        else:
            self.waiting.pop(request.seq_id, None)
            self.sent[request.seq_id] = request
        return head

    def mark_replayed(self, request: RequestRow, busy_s: float) -> None:
        """A replayed request ended well."""
        self.replaying.pop(request.seq_id, None)
        self._add_busy(request.seq_id, busy_s)
        self.snapshot_due |= request.kind == "load_weights"
        if not self.replay and not self.replaying:
            self.num_replay_losses = 0

    def mark_done(self, request: RequestRow, outcome: Outcome) -> None:
        """A sent request ended; if it changed the run, a replay must run it from here on."""
        self.sent.pop(request.seq_id, None)
        self.mark_finished(request.seq_id)
        if changes_run(request.kind, bool(outcome.error), outcome.category):
            self._add_busy(request.seq_id, outcome.busy_s)
            self.snapshot_due |= request.kind == "load_weights"

    def mark_finished(self, seq_id: int) -> None:
        """Step over a number from here on."""
        if seq_id >= self.next_seq:
            self.finished.add(seq_id)
            self._step_over_finished()

    def mark_saved(self, seq_id: int) -> None:
        """Requests up to here are in the snapshot."""
        for seq in [seq for seq in self.unsaved_s if seq <= seq_id]:
            self.unsaved_total_s -= self.unsaved_s.pop(seq)
            self.unsaved_at.pop(seq, None)
        if not self.unsaved_s:
            self.unsaved_total_s = 0.0

    def leave_worker(self) -> list[RequestRow]:
        """Forget what a worker had of the run; returns the requests it had, which wait again."""
        returned = list(self.sent.values())
        self.waiting.update((request.seq_id, request) for request in returned if request is not self.unload)
        self.sent.clear()
        self.replay.clear()
        self.replaying.clear()
        self.send_seq = self.next_seq
        self.row = None
        self.worker_id = None
        self.snapshot_is_out = False
        self.snapshot_pending = None
        return returned

    def is_in_flight(self) -> bool:
        """Whether the worker has something of this run to report."""
        return bool(self.sent or self.replaying)

    def is_drained(self) -> bool:
        """Whether everything that could run has run."""
        return not self.is_in_flight() and not self.replay and self.next_seq not in self.waiting

    def _add_busy(self, seq_id: int, busy_s: float) -> None:
        self.unsaved_total_s += busy_s - self.unsaved_s.get(seq_id, 0.0)
        self.unsaved_s[seq_id] = busy_s
        self.unsaved_at.setdefault(seq_id, self.changed_at)

    def _step_over_finished(self) -> None:
        while self.next_seq in self.finished:
            self.finished.remove(self.next_seq)
            self.next_seq += 1
