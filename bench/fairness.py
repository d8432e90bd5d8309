"""What one tenant's flood does to another's median latency, through the SDK on a server of this machine (contract 31).

    python -m bench.fairness --json [--rounds 15] [--model NAME]

A tenant samples, then trains, one request after another: first alone, then while another tenant keeps hundreds of long
requests of the same kind in flight. The required ratio of the medians is 2. Without --model a tiny random Llama is
served: its steps are so short that what a request costs anyway weighs most.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tinker
from tests.contracts.loops import STEP, TEXT, batch, prompt_of
from tests.live_server import LiveServer, start_server
from tests.tiny_model import save_tiny_model
from tinker import types

from openrl.cli.model_paths import find_model

REQUIRED_RATIO = 2.0
NAME = "served"
FLOOD_SAMPLES = 100
FLOOD_RUNS = 4
FLOOD_STEPS = 20
DATUMS = 16
SHORT = types.SamplingParams(max_tokens=16, stop=[], seed=1)
LONG = types.SamplingParams(max_tokens=200, stop=[])
SETTLE_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="NAME or NAME=DIR, as for openrl serve")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print only the result line")
    options = parser.parse_args()
    os.environ["TINKER_TELEMETRY"] = "0"  # read by the SDK
    with tempfile.TemporaryDirectory(prefix="openrl-bench-") as directory:
        root = Path(directory)
        model = find_model(options.model).path if options.model else save_tiny_model(root / "tiny")
        live = start_server(model, root / "data", name=NAME)
        try:
            result = measure(live, options.rounds)
        finally:
            live.process.kill()
            live.process.wait()
    print(json.dumps({"benchmark": "fairness", "model": options.model or "tiny", **result, "cores": os.cpu_count()}))


def measure(live: LiveServer, rounds: int) -> dict[str, Any]:
    """Both kinds of work in turn."""
    alice = tinker.ServiceClient(base_url=live.url, api_key=live.key)
    bob = tinker.ServiceClient(base_url=live.url, api_key=live.other_key)
    kinds = {"sampling": compare_sampling(alice, bob, rounds), "training": compare_training(alice, bob, rounds)}
    worst = max(kind["ratio"] for kind in kinds.values())
    return {"value": worst, "unit": "median latency in a flood / alone", "required": REQUIRED_RATIO, **kinds}


def compare_sampling(alice: tinker.ServiceClient, bob: tinker.ServiceClient, rounds: int) -> dict[str, float]:
    """One short sample at a time against FLOOD_SAMPLES requests of four long ones."""
    flooding, single = (each.create_sampling_client(base_model=NAME).result() for each in (alice, bob))

    def action() -> None:
        single.sample(prompt_of(TEXT), 1, SHORT).result()

    def flood() -> Sequence[Any]:
        return [flooding.sample(prompt_of(TEXT), 4, LONG)]

    return compare(action, flood, FLOOD_SAMPLES, rounds)


def compare_training(alice: tinker.ServiceClient, bob: tinker.ServiceClient, rounds: int) -> dict[str, float]:
    """One step (gradient and update) at a time against FLOOD_RUNS runs with FLOOD_STEPS such steps queued each."""
    data = batch(DATUMS)
    runs = [alice.create_lora_training_client(NAME, rank=8).result() for _ in range(FLOOD_RUNS)]
    single = bob.create_lora_training_client(NAME, rank=8).result()

    def step(run: tinker.TrainingClient) -> list[Any]:
        return [run.forward_backward(data, "cross_entropy"), run.optim_step(STEP)]

    def action() -> None:
        for future in step(single):
            future.result()

    def flood() -> Sequence[Any]:
        return [future for run in runs for future in step(run)]

    return compare(action, flood, FLOOD_STEPS, rounds)


def compare(
    action: Callable[[], None], flood: Callable[[], Sequence[Any]], depth: int, rounds: int
) -> dict[str, float]:
    """Medians of the action alone, and while `depth` turns of the flood are in flight all the time."""
    alone_s = median_s(action, rounds)
    is_over = threading.Event()

    def keep_flooding() -> None:
        turns = deque(flood() for _ in range(depth))
        while not is_over.is_set():
            for future in turns.popleft():
                future.result()
            turns.append(flood())
        for turn in turns:
            for future in turn:
                future.future().cancel()

    thread = threading.Thread(target=keep_flooding)
    thread.start()
    time.sleep(SETTLE_S)
    flooded_s = median_s(action, rounds)
    is_over.set()
    thread.join()
    return {
        "alone_ms": round(alone_s * 1e3, 1),
        "flooded_ms": round(flooded_s * 1e3, 1),
        "ratio": round(flooded_s / alone_s, 2),
    }


def median_s(action: Callable[[], None], rounds: int) -> float:
    """Median seconds of an action after two unmeasured turns."""
    durations: list[float] = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        action()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[2:])


if __name__ == "__main__":
    main()
