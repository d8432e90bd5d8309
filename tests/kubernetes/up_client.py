"""A client of its own process: trains in peace, then again in rounds in which something happens to the cluster.

Lines on standard output: "ready", "under way" in each round, then "same" or what differs. A line on standard input
begins a round.
"""

import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import safetensors.numpy
import tinker

from tests.contracts.loops import STEP, TEXT, Trained, batch, connect, new_run, numbers, sample, snapshot
from tests.contracts.saved_state import download

Result = tuple[list[Trained], dict[str, np.ndarray], object]


def main() -> None:
    url, key, num_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    headers = {"X-API-Key": key}
    with connect(url, key) as service, httpx.Client(base_url=f"{url}/api/v1/", headers=headers, timeout=60) as http:
        expected = play(service, http, num_steps)
        tell("ready")
        for _ in sys.stdin:
            got = play(service, http, num_steps, when_under_way=lambda: tell("under way"))
            tell(difference(expected, got) or "same")


def play(
    service: tinker.ServiceClient, http: httpx.Client, num_steps: int, when_under_way: Callable[[], None] = lambda: None
) -> Result:
    """Numbers of every step, the final adapter and optimizer, samples from them."""
    run = new_run(service)
    pending = [(run.forward_backward(batch(3, i), "cross_entropy"), run.optim_step(STEP)) for i in range(num_steps)]
    pending[1][1].result()
    when_under_way()
    trained = [Trained(numbers(passed.result()), stepped.result().metrics or {}) for passed, stepped in pending]
    path = run.save_state(f"state-{uuid.uuid4().hex}").result().path
    sampled = sample(snapshot(run), TEXT, 2, max_tokens=20, stop=[])
    return trained, weights(http, path), sampled


def weights(http: httpx.Client, path: str) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint, as the API hands them out."""
    with tempfile.TemporaryDirectory() as directory:
        unpacked = download(http, path, Path(directory))
        return {
            f"{file.name}:{name}": value
            for file in sorted(unpacked.glob("*.safetensors"))
            for name, value in safetensors.numpy.load_file(file).items()
        }


def difference(expected: Result, got: Result) -> str:
    """What is not the same to the last bit; empty if all is."""
    if expected[0] != got[0]:
        return "other numbers of steps"
    if expected[1].keys() != got[1].keys() or not expected[1]:
        return "other tensors"
    for name, value in expected[1].items():
        if value.tobytes() != got[1][name].tobytes():
            return f"other values of {name}"
    return "" if expected[2] == got[2] else "other samples"


def tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
