"""The journal is what survives: any prefix of it is a state, and half a line is none."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.errors import InvalidRequest
from openrl.research.journal import JOURNAL_FILE, Journal, PackingRecord, read_state


def fill(journal: Journal) -> None:
    for number in (1, 2):
        journal.append("started", number, params={"x": number}, seed=1, is_promotion=False, at=1.0)
        journal.append("reported", number, step=1, values={"score": 0.5 * number})
    journal.append("metered", 1, gpu_seconds=2.5, tokens=100.0)
    journal.append("packed", 0, wanted=2, why="there was room", num_running=1, at=1.5, device_duty=0.3)
    journal.append("ended", 1, state="done", reason="", at=2.0)


def test_what_was_appended_is_read_again(tmp_path: Path):
    with Journal(tmp_path) as journal:
        fill(journal)
        assert [each.state for each in read_state(tmp_path).attempts.values()] == ["done", "running"]
        with pytest.raises(InvalidRequest, match="another process runs the study"):
            Journal(tmp_path)
    state = read_state(tmp_path)
    assert [each.state for each in state.attempts.values()] == ["done", "interrupted"]
    assert (state.attempts[1].value("score"), state.usage.gpu_seconds, state.next_number) == (0.5, 2.5, 3)
    assert state.packing == PackingRecord(1.5, 2, "there was room", 1, 0.3, None)


@given(cut=st.integers(0, 2000))
def test_a_crash_at_any_byte_leaves_a_state_that_goes_on(tmp_path_factory: pytest.TempPathFactory, cut: int):
    directory = tmp_path_factory.mktemp("study")
    with Journal(directory) as journal:
        fill(journal)
    path = directory / JOURNAL_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with Journal(directory) as journal:
        journal.append("started", 9, params={"x": 9}, seed=1, is_promotion=False, at=3.0)
        assert set(journal.state.attempts) == set(read_state(directory).attempts)
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["attempt"] for line in lines][-1] == 9
    assert lines[:-1] == whole.splitlines()[: len(lines) - 1]
