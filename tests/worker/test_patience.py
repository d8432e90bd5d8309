from collections.abc import Callable
from pathlib import Path

import pytest

from openrl.errors import NotFound, Unavailable
from openrl.rpc.messages import ExecuteDone
from openrl.store.blobs import DirectoryBlobs
from openrl.worker.patience import read_patiently, write_patiently
from tests.worker.rig import RUN_ID, Rig, execute, open_run


class AwayForAWhile(DirectoryBlobs):
    """Every second read fails."""

    is_away = False

    def get_payload(self, ref: str) -> bytes:
        self.is_away = not self.is_away
        if self.is_away:
            raise Unavailable("cannot read packs/x: no answer in time")
        return super().get_payload(ref)


def failing(num_times: int, error: Exception) -> Callable[[], str]:
    errors = [error] * num_times

    def use() -> str:
        if errors:
            raise errors.pop()
        return "done"

    return use


def test_a_request_whose_payload_cannot_be_read_for_a_moment_does_not_fail(tmp_path: Path):
    rig = Rig(AwayForAWhile(tmp_path))
    reports = rig.run(open_run(), execute(rig.forward_backward(1)))
    (done,) = [report for report in reports if isinstance(report, ExecuteDone)]
    assert done.outcomes[0].error == ""
    assert rig.training.gradients[RUN_ID] == 2.0


def test_reading_gives_up_after_some_tries_and_at_once_where_nothing_is_there():
    waits: list[float] = []
    assert read_patiently(failing(3, Unavailable("away")), waits.append) == "done"
    assert waits == [0.1, 0.5, 1.0]
    with pytest.raises(Unavailable):
        read_patiently(failing(99, Unavailable("away")), waits.append)
    with pytest.raises(NotFound):
        read_patiently(failing(1, NotFound("gone")), waits.append)


def test_writing_waits_for_ten_minutes():
    waits: list[float] = []
    assert write_patiently(failing(60, OSError("disk full")), waits.append) == "done"
    waits.clear()
    with pytest.raises(OSError, match="disk full"):
        write_patiently(failing(999, OSError("disk full")), waits.append)
    assert sum(waits) == pytest.approx(608.6)
