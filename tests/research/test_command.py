"""`openrl research` as its users type it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from openrl.cli.research import run, status
from openrl.errors import InvalidRequest
from openrl.research.journal import Journal, read_state
from tests.live_server import OPENRL, environment, openrl
from tests.research.agents import write_agent_study
from tests.research.studies import SPACE, write_study


def test_a_study_is_run_and_shown(tmp_path: Path):
    directory = write_study(tmp_path / "sums", "[proposer]\nkind = 'grid'\n[budget]\nattempts = 2\n" + SPACE)
    ran = openrl("research", "run", str(directory))
    assert ran.returncode == 0, ran.stderr
    shown = json.loads(openrl("research", "status", str(directory), "--json").stdout)
    assert [each["state"] for each in shown["attempts"]] == ["done", "done"]
    assert shown["attempts"][0]["value"] == pytest.approx(-9 + 0.001 + 0.3)
    report = openrl("research", "report", str(directory)).stdout
    assert "| 1 | " in report
    assert "2 attempts (2 done, 0 stopped, 0 failed)" in report
    again = openrl("research", "run", str(directory))
    assert (again.returncode, "openrl research resume" in again.stderr) == (1, True)


@pytest.mark.slow
def test_ctrl_c_interrupts_and_resume_ends_it(tmp_path: Path):
    waits = "import pathlib, time\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.05)\n"
    command = (write_study(tmp_path / "a", "") / "attempt.py").read_text()
    text = "parallel = 2\n[proposer]\nkind = 'grid'\n[budget]\nattempts = 3\n" + SPACE
    directory = write_study(tmp_path / "b", text, waits + command)
    process = subprocess.Popen((*OPENRL, "research", "run", str(directory)), env=environment(), stderr=subprocess.PIPE)
    while len(read_state(directory).attempts) < 2:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, b"openrl research resume" in errors) == (130, True)
    assert {each.state for each in read_state(directory).attempts.values()} == {"interrupted"}
    (directory / "go").touch()
    assert openrl("research", "resume", str(directory)).returncode == 0
    assert [each.state for each in read_state(directory).attempts.values()] == ["done"] * 3


@pytest.mark.slow
def test_a_study_of_agents_that_is_killed_leaves_nothing_running_and_goes_on(tmp_path: Path):
    waits = "\nwhile not Path(os.environ['HOME'], 'go').exists(): time.sleep(0.05)"
    forks = "set_x(3)\nif os.fork() == 0:\n    os.setsid()" + waits
    directory = write_agent_study(tmp_path / "study", {2: "set_x(2)", 3: forks}, attempts=2)
    home = {**environment(), "HOME": str(tmp_path)}
    process = subprocess.Popen((*OPENRL, "research", "run", str(directory)), env=home)
    while not (directory / "attempts" / "0003" / "why.md").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    agent = f"{tmp_path}/study-agent.py"
    deadline = time.monotonic() + 60
    while subprocess.run(["pgrep", "-f", agent], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "go").touch()
    resumed = openrl("research", "resume", str(directory), settings={"HOME": str(tmp_path)})
    assert resumed.returncode == 0, resumed.stderr
    attempts = read_state(directory).attempts.values()
    assert [(each.state, each.why) for each in attempts] == [("done", ""), ("done", "X is 2"), ("done", "X is 3")]
    events = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    assert [each["attempt"] for each in events if each["event"] == "proposing"] == [2, 3, 3]
    assert "1: X is 3" in openrl("research", "status", str(directory)).stdout
    assert "1: X is 2" in openrl("research", "show", str(directory), "2").stdout


def test_a_study_that_goes_by_the_servers_load_needs_a_server_and_says_how_many_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    text = "parallel = 'auto'\nmax_parallel = 5\n[budget]\nattempts = 2\n" + SPACE
    directory = write_study(tmp_path / "sums", text)
    with pytest.raises(InvalidRequest, match='parallel = "auto" needs TINKER_BASE_URL'):
        run(directory)
    status(directory)
    assert "0 running, up to 5 at once" in capsys.readouterr().out
    with Journal(directory) as journal:
        journal.append("packed", 0, wanted=3, why="there was room", num_running=2, at=1.0, device_duty=0.5)
    status(directory)
    assert "0 running, 3 of up to 5 at once: there was room" in capsys.readouterr().out
    status(directory, as_json=True)
    packing = json.loads(capsys.readouterr().out)["packing"]
    assert (packing["wanted"], packing["device_duty"], packing["queue_wait_s"]) == (3, 0.5, None)


def test_a_new_study_can_be_read_at_once(tmp_path: Path):
    assert openrl("research", "new", str(tmp_path / "My_Study")).returncode == 0
    assert "my-study" in (tmp_path / "My_Study" / "study.toml").read_text()
    assert openrl("research", "status", str(tmp_path / "My_Study")).returncode == 0
    refused = openrl("research", "resume", str(tmp_path / "My_Study"))
    assert "has not begun" in refused.stderr
