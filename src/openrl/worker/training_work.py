"""A training command in the worker's hands: whose it is, and how far it has come."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from openrl.rpc.messages import CloseRun, Execute, OpenRun, SnapshotRun
from openrl.telemetry.logs import request_fields

TrainingCommand = OpenRun | CloseRun | SnapshotRun | Execute
Steps = Generator[None, None, None]
SERVER = ""
"""Owns closes and snapshots, as if it were a tenant."""


@dataclass(slots=True, eq=False)
class TrainingWork:
    """`touched`: the number of the turn in which it came; of a pass under way, of the turn that it had last."""

    command: TrainingCommand
    touched: int
    runs: frozenset[str] = field(init=False)
    parts: Mapping[str, float] = field(init=False)  # of its device time, by tenant, in any unit
    is_pass: bool = field(init=False)  # takes many turns; others end with a few short ones
    steps: Steps | None = None  # None: not begun
    started_at: float = 0.0
    busy_s: float = 0.0
    log_fields: Mapping[str, object] = field(init=False)  # what lines of its turns say of its requests

    def __post_init__(self) -> None:
        self.runs = _runs_of(self.command)
        self.parts = _parts_of(self.command)
        self.log_fields = _log_fields_of(self.command)
        self.is_pass = isinstance(self.command, Execute) and self.command.kind in ("forward", "forward_backward")


def _runs_of(command: TrainingCommand) -> frozenset[str]:
    match command:
        case Execute(_, _, items):
            return frozenset(item.run_id for item in items)
        case OpenRun(run):
            return frozenset([run.run_id])
        case CloseRun(run_id) | SnapshotRun(run_id):
            return frozenset([run_id])
        case _:
            assert_never(command)


def _log_fields_of(command: TrainingCommand) -> Mapping[str, object]:
    match command:
        case Execute(_, _, (item,)):
            return request_fields(item)
        case Execute(_, _, items):
            return {"requests": [request_fields(item) for item in items]}
        case OpenRun(run):
            return {"run_id": run.run_id, "tenant_id": run.tenant_id}
        case CloseRun(run_id) | SnapshotRun(run_id):
            return {"run_id": run_id}
        case _:
            assert_never(command)


def _parts_of(command: TrainingCommand) -> Mapping[str, float]:
    """As many as it has requests, until their sizes are known."""
    match command:
        case Execute(_, _, items):
            tenants = [item.tenant_id for item in items]
            return {tenant: float(tenants.count(tenant)) for tenant in tenants}
        case OpenRun(run):
            return {run.tenant_id: 1.0}
        case CloseRun() | SnapshotRun():
            return {SERVER: 1.0}
        case _:
            assert_never(command)
