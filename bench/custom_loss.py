"""A client's own loss run by the server, beside the same loss run by the client.

    python -m bench.custom_loss --json [--model gemma-3-270m] [--repeats 5] [--datums 8] [--length 128]

Both go through the SDK to a real `openrl serve`: forward_backward_custom with the uploaded loss is one pass and one
round trip; with the loss on the client it is a forward pass, the loss, and a second pass with its gradient. The two
alternate; medians count.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch
from tinker import types

from openrl.cli.model_paths import find_model

START_TIMEOUT_S = 300.0


def ppo(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The loss of both sides."""
    ratio = torch.exp(logprobs - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return loss, {"custom/ratio:mean": ratio.mean(), "custom/clipped:mean": (ratio != clipped).float().mean()}


def make_data(num_datums: int, length: int) -> list[types.Datum]:
    """Random tokens; the loss's inputs have no meaning."""
    rng = np.random.default_rng(0)
    data: list[types.Datum] = []
    for _ in range(num_datums):
        tokens = rng.integers(10, 500, length + 1).tolist()
        inputs: dict[str, Any] = {"target_tokens": tokens[1:]}
        for name, values in (("old", rng.normal(-6, 0.3, length)), ("advantages", rng.normal(0, 1, length))):
            inputs[name] = types.TensorData(data=values.tolist(), dtype="float32", shape=[length])
        data.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    return data


def start(model: Path, root: Path) -> tuple["subprocess.Popen[bytes]", dict[str, str]]:
    """A server over the model and what it says of itself."""
    ready = root / "ready.json"
    arguments = ("serve", "--model", f"bench={model}", "--port", "0", "--data-dir", str(root / "data"))
    program = (sys.executable, "-c", "from openrl.cli.main import main; main()")
    with (root / "log").open("w") as log:
        process = subprocess.Popen((*program, *arguments, "--ready-file", str(ready)), stdout=log, stderr=log)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {(root / 'log').read_text()[-2000:]}")
        time.sleep(0.1)
    return process, json.loads(ready.read_text())


def measure(url: str, key: str, data: list[types.Datum], repeats: int) -> dict[str, float]:
    """Median milliseconds of a forward_backward_custom on either side."""
    os.environ["TINKER_TELEMETRY"] = "0"
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        run = service.create_lora_training_client(base_model="bench", rank=16, seed=1).result()
        served = service.create_custom_loss(ppo, {"logprobs": 1, "old": 1, "advantages": 1}).result()
        sides = {"server": served, "client": replace(served, loss_id=None)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        losses: dict[str, float] = {}
        for _ in range(repeats + 1):
            for side, handle in sides.items():
                started = time.perf_counter()
                losses[side] = run.forward_backward_custom(data, handle).result().metrics["loss:sum"]
                times[side].append(1e3 * (time.perf_counter() - started))
        run.forward_backward(data[:1], "custom", {"loss_id": str(served.loss_id)}).result()
    medians = {f"{side}_ms": statistics.median(each[1:]) for side, each in times.items()}
    return {**medians, "loss_difference": abs(losses["server"] - losses["client"]) / abs(losses["client"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--datums", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="one JSON line last; always printed")
    options = parser.parse_args()
    model = Path(options.model) if Path(options.model).is_dir() else find_model(options.model).path
    with tempfile.TemporaryDirectory() as home:
        process, ready = start(model, Path(home))
        try:
            data = make_data(options.datums, options.length)
            measured = measure(ready["url"], ready["key"], data, options.repeats)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    measured["client_over_server"] = measured["client_ms"] / measured["server_ms"]
    print(json.dumps({"bench": "custom_loss", **{name: float(f"{value:.4g}") for name, value in measured.items()}}))


if __name__ == "__main__":
    main()
