"""Real SDK clients beside the load: their numbers must be those of the idle server, bit by bit."""

import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import tinker
from tests.contracts.loops import TEXT, Sampled, Trained, sample, train

from bench.soak.servers import NAME

NUM_STEPS = 3


class Seen(NamedTuple):
    """Everything that one turn of a probe got, and the seconds of its parts."""

    sampled: list[Sampled]
    trained: list[Trained]
    after: list[Sampled]
    sample_s: float
    train_s: float

    def agrees(self, other: "Seen") -> bool:
        """Whether all numbers are the same."""
        return self[:3] == other[:3]


@dataclass(frozen=True, slots=True)
class Probe:
    """A process with an SDK client of a tenant of its own."""

    process: Any
    connection: Any

    def start_turns(self) -> None:
        """Begin; the first turn is what all others are held against."""
        self.connection.send("go")

    def wait_first(self, timeout_s: float) -> None:
        """Return when the first turn is over; raises TimeoutError."""
        if not self.connection.poll(timeout_s):
            raise TimeoutError(f"the probe had no result in {timeout_s:.0f} s")
        self.connection.recv()

    def finish(self, timeout_s: float) -> dict[str, Any]:
        """End after the turn under way; what was found."""
        self.connection.send("stop")
        found = self.connection.recv() if self.connection.poll(timeout_s) else {"error": "no answer", "turns": 0}
        self.process.join(timeout_s)
        return found


def start_probe(port: int, key: str) -> Probe:
    """The process makes its first turn at once, then one after another until it is told to stop."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    arguments = (f"http://127.0.0.1:{port}", key, theirs)
    process = multiprocessing.get_context("spawn").Process(target=_turns, args=arguments, daemon=True)
    process.start()
    return Probe(process, ours)


def _turns(url: str, key: str, connection: Any) -> None:
    os.environ["TINKER_TELEMETRY"] = "0"  # read by the SDK alone
    first = _turn(url, key)
    connection.send("ready")
    later: list[Seen] = []
    error = ""
    while not (connection.poll() or error):
        try:
            later.append(_turn(url, key))
        except tinker.TinkerError as failure:
            error = f"{type(failure).__name__}: {failure}"
    found: dict[str, Any] = {"turns": len(later), "differing": sum(not each.agrees(first) for each in later)}
    if later:
        found["sample_s"] = round(statistics.median(each.sample_s for each in later), 3)
        found["steps_s"] = round(statistics.median(each.train_s for each in later), 3)
    connection.send(found | ({"error": error} if error else {}))


def _turn(url: str, key: str) -> Seen:
    """A new session: a sample of the base model, a run with a few steps, a sample of what it learnt."""
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        base = service.create_sampling_client(base_model=NAME).result()
        started = time.perf_counter()
        sampled = sample(base, TEXT, 2)
        sample_s = time.perf_counter() - started
        run = service.create_lora_training_client(NAME, rank=4, seed=3).result()
        started = time.perf_counter()
        trained = train(run, NUM_STEPS)
        train_s = time.perf_counter() - started
        after = sample(run.save_weights_and_get_sampling_client().result(), TEXT, 2)
        return Seen(sampled, trained, after, sample_s, train_s)
