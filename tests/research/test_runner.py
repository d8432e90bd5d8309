"""Studies that run: real processes, a real journal, a command whose best answer is known."""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest

from openrl.errors import Unavailable
from openrl.research.evidence import compare, entries
from openrl.research.journal import Journal, StudyState, Usage, read_state
from openrl.research.meter import Meter, NoMeter
from openrl.research.report import markdown_report
from openrl.research.runner import Runner
from openrl.research.server_load import Load
from openrl.research.study import load_study
from tests.research.studies import COMMAND, SPACE, params_of, write_study


async def run_study(directory: Path, meter: Meter | None = None) -> StudyState:
    with Journal(directory) as journal:
        await Runner(directory, load_study(directory), journal, meter or NoMeter()).run()
    return read_state(directory)


async def test_a_grid_is_tried_once_and_its_best_is_found(tmp_path: Path):
    text = "parallel = 2\n[proposer]\nkind = 'grid'\n[budget]\nattempts = 50\n" + SPACE.replace("6", "2")
    state = await run_study(write_study(tmp_path, text))
    assert len({repr(each.params) for each in state.attempts.values()}) == len(state.attempts) == 6
    assert {each.state for each in state.attempts.values()} == {"done"}
    [best, *_] = entries(load_study(tmp_path), state.attempts.values())
    assert (best.params, best.mean) == (params_of(2, "b"), pytest.approx(1.0 - 1.0 + 0.001 + 0.3))


async def test_the_best_run_again_with_other_seeds_and_are_compared_with_the_defaults(tmp_path: Path):
    text = (
        "parallel = 2\nseeds = [1, 2, 3]\npromote = 1\nfinal_metric = 'final'\n[proposer]\nkind = 'grid'\n"
        "[budget]\nattempts = 8\n"
        "[space]\nx = {low = 2, high = 3}\nkind = {values = ['a', 'b']}\n[defaults]\nx = 2\nkind = 'a'\n"
    )
    state = await run_study(write_study(tmp_path, text))
    study = load_study(tmp_path)
    assert len(state.attempts) == 8
    assert state.attempts[1].params == params_of(2)
    again = [each for each in state.attempts.values() if each.is_promotion]
    assert {(each.params["x"], each.params["kind"], each.seed) for each in again} == {
        (x, kind, seed) for x, kind in ((3, "b"), (2, "a")) for seed in (2, 3)
    }
    found = compare(study, list(state.attempts.values()))
    assert found is not None
    assert found.best.params == params_of(3, "b")
    assert found.difference == pytest.approx(2.0)
    assert found.holds
    assert "is better beyond chance" in markdown_report(study, state)


async def test_a_failed_attempt_says_why_and_the_study_goes_on(tmp_path: Path):
    text = (
        "[proposer]\nkind = 'grid'\n[budget]\nattempts = 2\n[space]\nx = {values = [7, 3]}\nkind = {values = ['a']}\n"
    )
    state = await run_study(write_study(tmp_path, text))
    assert [each.state for each in state.attempts.values()] == ["failed", "done"]
    assert state.attempts[1].reason == "exit status 1: x is 7"
    assert "x is 7" in markdown_report(load_study(tmp_path), state)


async def test_a_study_that_was_cut_off_goes_on_without_repeating_what_ended(tmp_path: Path):
    waits = COMMAND.replace("import sys\n", "import sys, pathlib, time\n", 1) + (
        "if x == 1:\n    while not pathlib.Path('go').exists():\n        time.sleep(0.05)\n"
    )
    text = (
        "[proposer]\nkind = 'grid'\n[budget]\nattempts = 3\n[space]\nx = {low = 0, high = 2}\nkind = {values = ['a']}\n"
    )
    directory = write_study(tmp_path, text, waits)
    with Journal(directory) as journal:
        running = asyncio.create_task(Runner(directory, load_study(directory), journal, NoMeter()).run())
        while not any(each.params["x"] == 1 and each.reports for each in journal.state.attempts.values()):
            await asyncio.sleep(0.05)
            assert not running.done()
        running.cancel()
        await asyncio.wait((running,))
    assert [each.state for each in read_state(directory).attempts.values()] == ["done", "interrupted"]
    (directory / "go").touch()
    state = await run_study(directory)
    assert [each.state for each in state.attempts.values()] == ["done"] * 3
    events = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    assert [each["attempt"] for each in events if each["event"] == "started"] == [1, 2, 2, 3]


class ChargingMeter:
    """Every attempt costs ten GPU-seconds as soon as it is asked about."""

    async def usage(self, project_ids: Collection[str], since: float) -> Mapping[str, Usage]:
        return {each: Usage(10.0, 1000.0) for each in project_ids}


async def test_a_budget_is_what_the_server_metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openrl.research.runner._METER_S", 0.05)
    state = await run_study(
        write_study(tmp_path, "[budget]\nattempts = 50\ngpu_seconds = 25\n" + SPACE), ChargingMeter()
    )
    assert 3 <= len(state.attempts) <= 4
    assert state.usage.gpu_seconds == 10.0 * len(state.attempts)


async def test_early_stopping_ends_those_that_are_behind(tmp_path: Path):
    waits = COMMAND.replace("import sys\n", "import sys, time\n", 1).replace(
        "    value =", "    time.sleep(1)\n    value ="
    )
    text = (
        "[proposer]\nkind = 'grid'\n[early_stop]\nfirst_rung = 1\nfactor = 2\n[budget]\nattempts = 3\n"
        "[space]\nx = {values = [3, 0]}\nkind = {values = ['a']}\n"
    )
    state = await run_study(write_study(tmp_path, text, waits))
    assert [each.state for each in state.attempts.values()] == ["done", "stopped"]
    assert state.attempts[2].reason == "not among the best of its rung"


async def test_a_model_finds_better_parameters_than_chance_and_never_repeats(tmp_path: Path):
    text = "parallel = 4\n[proposer]\nnum_random = 4\n[budget]\nattempts = 12\n" + SPACE
    state = await run_study(write_study(tmp_path, text, COMMAND.replace("range(attempt.first_step, 4)", "range(1)")))
    assert len({repr(each.params) for each in state.attempts.values()}) == 12
    assert entries(load_study(tmp_path), state.attempts.values())[0].mean > 0


class ToldLoad:
    """A server whose load the test says."""

    told: Load | Unavailable = Load(0.1, 0.0)

    async def load(self) -> Load:
        if isinstance(self.told, Unavailable):
            raise self.told
        return self.told


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrl.research.packer.LOOK_S", 0.02)
    monkeypatch.setattr("openrl.research.packing.HOLD_S", 0.2)


async def until(condition: Callable[[], bool], running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)
            assert not running.done()


@pytest.mark.usefixtures("_soon")
async def test_as_many_run_at_once_as_the_server_has_room_for(tmp_path: Path):
    waits = "import pathlib, time\n" + COMMAND + "while not pathlib.Path(f'go{x}').exists():\n    time.sleep(0.02)\n"
    text = (
        "parallel = 'auto'\nmax_parallel = 3\n[proposer]\nkind = 'grid'\n[budget]\nattempts = 5\n"
        "[space]\nx = {values = [1, 2, 3, 4, 5, 6]}\nkind = {values = ['a']}\n"
    )
    directory, source = write_study(tmp_path, text, waits), ToldLoad()
    with Journal(directory) as journal:
        attempts = journal.state.attempts
        running = asyncio.create_task(
            Runner(directory, load_study(directory), journal, NoMeter(), load=source).run()
        )  # fmt: skip
        await until(lambda: len(attempts) == 3 and all(each.reports for each in attempts.values()), running)
        source.told = Load(1.0, 30.0)
        await until(lambda: journal.state.packings[-1].wanted == 1, running)
        assert [each.state for each in attempts.values()] == ["running"] * 3, "none is ended for the queue's sake"
        for x in (1, 2):
            (directory / f"go{x}").touch()
        await until(lambda: sum(each.state == "done" for each in attempts.values()) == 2, running)
        source.told = Unavailable("nobody is there")
        await until(lambda: journal.state.packings[-1].why == "nobody is there", running)
        assert len(attempts) == 3, "nothing came in the place of those that ended"
        for x in (3, 4, 5):
            (directory / f"go{x}").touch()
        await running
    state = read_state(directory)
    assert [each.state for each in state.attempts.values()] == ["done"] * 5
    assert [each.wanted for each in state.packings] == [1, 2, 3, 2, 1, 1]
    assert (state.packings[1].device_duty, state.packings[1].num_running) == (0.1, 1)
    told = markdown_report(load_study(directory), state)
    assert "devices were 100% busy and the queue never under 30.0 s" in told


@pytest.mark.usefixtures("_soon")
async def test_an_interrupted_study_goes_on_with_as_many_as_before_and_stays_within_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("openrl.research.runner._METER_S", 0.05)
    text = "parallel = 'auto'\nmax_parallel = 2\n[budget]\nattempts = 50\ngpu_seconds = 45\n" + SPACE
    directory = write_study(tmp_path, text)
    with Journal(directory) as journal:
        journal.append("packed", 0, wanted=4, why="there was room", num_running=4, at=1.0)
        study = load_study(directory)
        await Runner(directory, study, journal, ChargingMeter(), load=ToldLoad()).run()
    state = read_state(directory)
    assert 5 <= len(state.attempts) <= 7
    assert {each.wanted for each in state.packings[1:]} == {2}
    assert state.packings[1].why == "as before the interruption"
