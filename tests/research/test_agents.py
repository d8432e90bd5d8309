"""Agents change a program, are judged by its metric, and stay within their bounds."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from openrl.errors import InvalidRequest
from openrl.research.evidence import compare
from openrl.research.journal import AttemptRecord, Journal, StudyState, read_state
from openrl.research.kept import kept
from openrl.research.meter import NoMeter
from openrl.research.report import markdown_report
from openrl.research.researchers import next_researcher
from openrl.research.runner import Runner
from openrl.research.study import load_study
from tests.research.agents import write_agent_study


async def run_study(directory: Path) -> StudyState:
    with Journal(directory) as journal:
        await Runner(directory, load_study(directory), journal, NoMeter()).run()
    return read_state(directory)


def outcomes(state: StudyState) -> list[tuple[str, str]]:
    return [(each.state, each.reason) for _, each in sorted(state.attempts.items()) if not each.is_promotion]


async def test_better_changes_are_kept_and_others_undone(tmp_path: Path):
    script = {
        2: "set_x(3)",
        3: "assert Path('settings.py').read_text() == 'X = 3\\n'; set_x(2)",
        4: "assert Path('settings.py').read_text() == 'X = 3\\n'; set_x(4); Path('lib').mkdir(); "
        "Path('lib/new.py').write_text('pass'); Path(os.environ['OPENRL_WHY_FILE']).unlink(); "
        "print('first\\nlast words')",
        5: "assert Path('lib/new.py').exists() and not Path('left-by-the-run.txt').exists(); set_x(5)",
    }
    text = "seeds = [1, 2, 3]\npromote = 1\nfinal_metric = 'final'\n"
    directory = write_agent_study(tmp_path / "study", script, attempts=4, text=text)
    (directory / "program.md").write_text("Make X large.\n")
    state = await run_study(directory)
    study = load_study(directory)
    assert outcomes(state) == [("done", "")] * 5
    assert [each.number for each in kept(study, state.attempts.values(), 1)] == [1, 2, 4, 5]
    assert state.attempts[4].why == "first\nlast words"
    patch = (directory / "attempts" / "0003" / "change.patch").read_text()
    assert ("-X = 3\n" in patch, "+X = 2\n" in patch) == (True, True)
    prompt = (directory / "attempts" / "0005" / "prompt.md").read_text()
    tried = ("| 2 | 1 | kept | 3.001 | X is 3 |", "| 3 | 1 | not better | 2.001 | X is 2 |")
    for words in ("Make X large.", *tried, "this one included: 1.", "after this turn: 15 runs"):
        assert words in prompt
    found = compare(study, list(state.attempts.values()))
    assert found is not None
    assert (found.best.attempts[0].number, len(found.best.values), found.num_choices) == (5, 3, 4)
    assert found.difference == pytest.approx(4.0)
    report = markdown_report(study, state)
    assert "| 3 | not better | 2.001 | 1: X is 2 |" in report
    assert (directory / "settings.py").read_text() == "X = 1\n"


async def test_what_an_agent_must_not_do_costs_it_a_turn_and_nothing_else(tmp_path: Path):
    script = {
        2: "set_x(9); Path('attempt.py').write_text('')",
        3: "set_x(9); Path('lib/deep').mkdir(parents=True); Path('lib/deep/a.py').write_text('')",
        4: "pass",
        5: "set_x(1)",
        6: "Path('settings.py').unlink(); os.symlink('/etc/passwd', 'settings.py')",
        7: "set_x(8); sys.exit('out of ideas')",
        8: "set_x('1' * 200_000)",
        9: "set_x(8)\nwhile True: print('y' * 10_000)",
        10: "Path('.git').unlink(); set_x(2)",
        11: "set_x(2)\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)",
    }
    agent = "max_output_bytes = 100_000\n"
    directory = write_agent_study(tmp_path / "study", script, attempts=10, agent=agent)
    state = await run_study(directory)
    not_editable = "changed files that are not editable: "
    assert outcomes(state) == [
        ("done", ""),
        ("refused", not_editable + "attempt.py"),
        ("refused", not_editable + "lib/deep/a.py"),
        ("duplicate", "no change"),
        ("duplicate", "no change"),
        ("refused", not_editable + "settings.py"),
        ("failed", "the agent ended with status 1: out of ideas"),
        ("refused", "changed files have 200005 bytes, above max_output_bytes = 100000"),
        ("failed", "the agent printed more than max_output_bytes = 100000"),
        ("done", ""),
        ("duplicate", "no change"),
    ]
    assert state.num_runs == 2
    left = subprocess.run(["pgrep", "-f", f"{tmp_path}/study-agent.py"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
    assert (directory / "attempts" / "0009" / "agent.txt").stat().st_size == 100_000


@pytest.mark.slow
async def test_an_agent_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    script = {2: "set_x(7)\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(600)"}
    directory = write_agent_study(tmp_path / "study", script, attempts=1, agent="turn_timeout_s = 3")
    assert outcomes(await run_study(directory))[1] == (
        "failed", "the agent was not done after turn_timeout_s = 3 s"
    )  # fmt: skip
    left = subprocess.run(["pgrep", "-f", f"{tmp_path}/study-agent.py"], capture_output=True, text=True, check=False)
    assert left.stdout == ""


@pytest.mark.slow
async def test_researchers_work_at_once_know_of_each_other_and_repeat_nothing(tmp_path: Path):
    same = "set_x(2 if number < 4 else 3 + int(os.environ['OPENRL_RESEARCHER']))"
    directory = write_agent_study(
        tmp_path / "study", dict.fromkeys(range(2, 6), same), attempts=2, agent="researchers = 2"
    )
    state = await run_study(directory)
    assert sorted(each.state for each in state.attempts.values()) == ["done"] * 4 + ["duplicate"]
    assert {each.researcher for each in state.attempts.values()} == {0, 1, 2}
    assert "X is 2" in (directory / "attempts" / "0005" / "prompt.md").read_text()


async def test_an_agent_and_what_it_wrote_see_the_variables_that_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("TINKER_API_KEY", "OPENRL_STORE__URL", "AGENT_KEY", "OTHER_SECRET"):
        monkeypatch.setenv(name, "secret")
    names = "[name for name, value in os.environ.items() if value == 'secret']"
    script = {2: f"set_x(2); why(str({names})); Path('lib').mkdir(); Path('lib/__init__.py').write_text('')"}
    directory = write_agent_study(tmp_path / "study", script, attempts=1, agent="environment = ['AGENT_KEY']")
    (directory / "attempt.py").write_text(
        (directory / "attempt.py").read_text() + f"import os\nraise SystemExit(str({names}))\n"
    )
    state = await run_study(directory)
    assert state.attempts[2].why == "['AGENT_KEY']"
    assert state.attempts[2].reason == "exit status 1: ['TINKER_API_KEY']"


@pytest.mark.slow
async def test_a_study_inside_a_repository_has_its_files_and_leaves_it_alone(tmp_path: Path):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    for name, text in (("common.py", "START = 1\n"), ("ignored.txt", ""), (".gitignore", "ignored.txt\n")):
        (tmp_path / name).write_text(text)
    script = {2: "assert Path('../../common.py').exists() and not Path('../../ignored.txt').exists(); set_x(2)"}
    directory = write_agent_study(
        tmp_path / "studies" / "study", {**script, 3: "Path('../../common.py').write_text('')"}, 2
    )
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, env=environment, check=True)

    def look() -> str:
        return subprocess.run(["git", "for-each-ref"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    before = look()
    state = await run_study(directory)
    assert outcomes(state) == [
        ("done", ""), ("done", ""), ("refused", "changed files that are not editable: common.py"),
    ]  # fmt: skip
    assert look() == before
    assert not (tmp_path / ".git" / "worktrees").exists()


async def test_a_turn_that_was_cut_off_is_taken_again_and_a_run_that_was_goes_on(tmp_path: Path):
    wait = "\nwhile not Path(os.environ['HOME'], 'go').exists(): time.sleep(0.05)"
    directory = write_agent_study(tmp_path / "study", {2: "set_x(2)", 3: "set_x(3)" + wait, 4: "set_x(4)"}, attempts=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        with Journal(directory) as journal:
            running = asyncio.create_task(Runner(directory, load_study(directory), journal, NoMeter()).run())
            while not (directory / "attempts" / "0003" / "why.md").exists():
                await asyncio.sleep(0.05)
                assert not running.done()
            running.cancel()
            await asyncio.wait((running,))
        assert [state for state, _ in outcomes(read_state(directory))] == ["done", "done", "interrupted"]
        (tmp_path / "go").touch()
        state = await run_study(directory)
    assert [each.why for each in state.attempts.values()] == ["", "X is 2", "X is 3", "X is 4"]
    events = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    assert [each["attempt"] for each in events if each["event"] == "proposing"] == [2, 3, 3, 4]
    assert [each["attempt"] for each in events if each["event"] == "started"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("agent", "text", "fault"),
    [
        ("environment = ['TINKER_API_KEY']", "", "nothing of the server's"),
        ("researchers = 0", "", "agent.researchers"),
        ("", "[space]\nx = {values = [1]}\n", "goes without a [space]"),
    ],
)
def test_what_is_wrong_with_an_agents_section_is_named(tmp_path: Path, agent: str, text: str, fault: str):
    directory = write_agent_study(tmp_path / "study", {}, attempts=1, agent=agent, text=text)
    with pytest.raises(InvalidRequest) as caught:
        load_study(directory)
    assert fault in str(caught.value)


@pytest.mark.parametrize("glob", ["/etc/*", "../x", "", ":(top)x"])
def test_editable_files_are_below_the_study(tmp_path: Path, glob: str):
    directory = write_agent_study(tmp_path / "study", {}, attempts=1)
    file = directory / "study.toml"
    file.write_text(file.read_text().replace('"lib/*.py"', json.dumps(glob)))
    with pytest.raises(InvalidRequest, match="editable has"):
        load_study(directory)


def test_without_git_the_study_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = write_agent_study(tmp_path / "study", {}, attempts=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Journal(directory) as journal, pytest.raises(InvalidRequest, match="needs git"):
        Runner(directory, load_study(directory), journal, NoMeter())


def test_whoever_had_fewest_turns_is_next_until_all_are_used(tmp_path: Path):
    agent = load_study(write_agent_study(tmp_path / "study", {}, attempts=2, agent="researchers = 2")).agent
    assert agent is not None
    done = {1: AttemptRecord(1, {}, 1, state="done"), 2: AttemptRecord(2, {}, 1, state="refused", researcher=1)}
    assert next_researcher(agent, StudyState(done)) == 2
    thinking = {**done, 3: AttemptRecord(3, {}, 1, state="proposing", researcher=2)}
    assert next_researcher(agent, StudyState(thinking)) == 1
    thinking[4] = AttemptRecord(4, {}, 1, state="done", researcher=1)
    assert next_researcher(agent, StudyState(thinking)) is None
