"""A short soak: many tenants on `openrl serve` with a tiny model, no errors and nobody favoured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.soak.checks import gradient_fault, json_fault, sample_fault
from bench.soak.processes import ProcessWatch, Reading
from bench.soak.tally import quantile, spread

from openrl.protocol import tinker_pb2 as pb
from tests.live_server import environment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_tenants_at_once_get_their_answers_and_equal_parts():
    command = (
        sys.executable,
        "-m",
        "bench.soak",
        "--tiny",
        "--minutes",
        "0.75",
        "--tenants",
        "10",
        "--runs",
        "2",
        "--json",
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=root)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["errors_by_kind"] == {}
    assert done.returncode == 0, done.stderr
    assert result["holds"]["fairness"], result["fairness"]
    assert result["probe"]["turns"] > 0
    assert result["probe"]["differing"] == 0
    assert result["runs_whose_loss_fell"] == 20


def sampled(tokens: list[int], logprobs: list[float]) -> bytes:
    message = pb.SampleResponse()
    message.sequences.add(tokens=np.array(tokens, "<i4").tobytes(), logprobs=np.array(logprobs, "<f4").tobytes())
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (sampled([1, 2], [-1.0, -2.0]), ""),
        (sampled([1, 9], [-1.0, -2.0]), "a token outside the vocabulary"),
        (sampled([1], [float("nan")]), "log-probabilities that are none"),
        (sampled([1] * 4, [-1.0] * 4), "wrong number of tokens or log-probabilities"),
        (sampled([], []), "wrong number of tokens or log-probabilities"),
        (b"", "another number of samples than asked for"),
        (b"\xff", "is no SampleResponse"),
    ],
)
def test_a_sample_that_cannot_be_right_is_noticed(body: bytes, fault: str):
    assert sample_fault(body, num_samples=1, max_tokens=3, vocab_size=9) == fault


def test_a_gradient_or_step_that_cannot_be_right_is_noticed():
    assert gradient_fault(b"", [2]) == "another number of datums than sent"
    assert json_fault(b'{"metrics": {"x": NaN}}', "metrics") == "metrics not finite"
    assert json_fault(b'{"metrics": {}}', "metrics") == ""
    assert json_fault(b"{}", "path") == "has no path"


def test_memory_that_grows_is_seen_in_the_thirds():
    watch = ProcessWatch(dict)
    watch.readings = {"server": [Reading(float(t), 100.0 + t, 200.0, 0.5 * t) for t in range(61)]}
    found = watch.summary(0.0, 60.0)["server"]
    assert found["slope_mb_min"] == 60.0
    assert found["growth"] == pytest.approx(0.37, abs=0.01)
    assert found["cores"] == 0.5


def test_the_spread_is_largest_over_smallest():
    assert spread([4, 6, 5]) == 1.5
    assert spread([4, 0]) is None
    assert quantile(range(1, 101), 0.99) == 100
    assert quantile([], 0.5) is None
