"""The benchmarks of the engines run, check themselves, and say what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import handoff, mismatch, optim, records, report, sample, train

PROGRAMS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "train": train.main,
    "optim": optim.main,
    "sample": sample.main,
    "handoff": handoff.main,
    "mismatch": mismatch.main,
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
