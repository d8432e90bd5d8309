"""The benchmarks of the engines run, check themselves, and say what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import handoff, mismatch, optim, records, report, sample, startup, suite, train

PROGRAMS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "train": train.main,
    "optim": optim.main,
    "sample": sample.main,
    "handoff": handoff.main,
    "mismatch": mismatch.main,
    "startup": startup.main,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_tiny_run_prints_one_line_with_everything(name: str, capsys: pytest.CaptureFixture[str]):
    result = PROGRAMS[name](["--tiny", "--json", "--repeats", "1", "--model", "qwen3-0.6b"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(json.dumps(result))
    assert result["benchmark"] == name
    assert {"value", "unit", "limit", "ratio", "twin", "device", "versions", "commit", "at"} <= result.keys()
    for part in result["parts"]:
        # Differences of a few milliseconds: on a busy machine they may be nothing.
        assert part["value"] >= 0


def test_a_recorded_result_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    for _ in range(2):
        optim.main(["--tiny", "--json", "--repeats", "1", "--record"])
    lines = (tmp_path / "optim.jsonl").read_text().splitlines()
    assert [json.loads(line)["benchmark"] for line in lines] == ["optim", "optim"]
    page = report.markdown_page(tmp_path)
    assert page.count("| adamw |") == 2
    report.plot(tmp_path)
    assert (tmp_path / "optim.png").stat().st_size > 0


def test_the_suite_goes_on_after_one_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(suite.LIMITS_S, "optim", 0.1)
    monkeypatch.setenv("OPENRL_BENCH_COMMIT", "abc1234")
    assert suite.main(["--tiny", "--only", "optim", "handoff", "--out", str(tmp_path)]) == 1
    (line,) = (tmp_path / "suite.jsonl").read_text().splitlines()
    assert (json.loads(line)["benchmark"], json.loads(line)["commit"]) == ("handoff", "abc1234")
    assert "optim: over 0 s" in capsys.readouterr().out
