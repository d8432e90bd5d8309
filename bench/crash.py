"""Clients of two tenants at work while processes are killed: nothing acknowledged is lost, doubled or changed.

    python -m bench.crash --json [--form serve|cluster] [--kills 100] [--seed 1] [--keep DIRECTORY]

Runs of two tenants train pipelined, sample, save, load and delete through the SDK, each loop a function of a seed
(`crash_jobs`). Meanwhile processes are killed with kill -9 at random moments and started again after a random pause;
one kill in four comes before the last has been recovered from. At the end the log, the results, the files and a twin
that nobody disturbed are compared (`crash_checks`). Exit status 1 if anything is wrong. Recovery: from a kill until
all that was in flight then has been answered.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.tiny_model import save_tiny_model

from bench.crash_checks import (
    Findings,
    Log,
    Transcripts,
    check_clients,
    check_files,
    check_log,
    check_results,
    check_weights,
    compare_with_twin,
    final_files,
    read_transcripts,
)
from bench.crash_cluster import ClusterInstallation
from bench.crash_jobs import STOP_FILE, Tenant, has_failed, run_tenant
from bench.crash_serve import Installation, ServeInstallation

RUNS_OF_A_TENANT = 2
HURRIED = 0.25
"""How many kills come before the last has been recovered from, two in a row at most."""
RECOVERY_TIMEOUT_S = 240.0
"""The SDK repeats a call for 300 s; what takes this long is given up and is an error."""
Disturb = Callable[[Installation, Sequence[Path]], "list[Kill]"]
"""Troubles an installation on which the loops with these transcripts are at work, until they have recovered."""
FORMS: dict[str, Callable[[Path, Path], Installation]] = {"serve": ServeInstallation, "cluster": ClusterInstallation}


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, on the machine's steady clock."""

    kind: str
    at: float
    is_hurried: bool


@dataclass(slots=True)
class Outcome:
    """What a run of the clients left."""

    kills: list[Kill]
    transcripts: Transcripts
    weights: Mapping[str, dict[str, bytes]]
    num_requests: int = 0
    num_refetched: int = 0
    num_objects: int = 0
    findings: Findings = field(default_factory=Findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, default="serve")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory for logs, rows and files; a temporary one otherwise")
    parser.add_argument("--json", action="store_true", help="print only the result line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openrl-crash-") as directory:
        root = options.keep or Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        result = run(options.form, options.kills, options.seed, root, is_quiet=options.json)
    print(json.dumps(result))
    sys.exit(0 if result["is_right"] else 1)


def run(form: str, num_kills: int, seed: int, root: Path, is_quiet: bool = True) -> dict[str, Any]:
    """The whole benchmark; its result line."""
    started_at = time.monotonic()
    model_dir = save_tiny_model(root / "tiny")
    installation = FORMS[form](model_dir, root / "crashed")
    kill = Killer(num_kills, random.Random(seed), is_quiet)
    crashed = compare(installation, ServeInstallation(model_dir, root / "twin"), seed, kill)
    return result_of(form, seed, crashed, time.monotonic() - started_at)


def compare(installation: Installation, twin: Installation, seed: int, disturb: Disturb) -> Outcome:
    """Clients at work on a disturbed installation, and then on one that nobody disturbs; all that is wrong."""
    crashed = measure(installation, seed, disturb)
    if not crashed.findings.counts.get("errors"):  # a loop that was cut short has no twin
        rounds = {name: answers[-1].round + 1 for name, answers in crashed.transcripts.items()}
        add_twin(crashed, measure(twin, seed, None, rounds))
    return crashed


def add_twin(crashed: Outcome, twin: Outcome) -> None:
    """Find what differs from the twin."""
    findings = crashed.findings
    for what, count in twin.findings.counts.items():
        findings.add(f"twin_{what}", str(twin.findings.examples[what]), count)
    compare_with_twin(crashed.transcripts, twin.transcripts, findings)
    check_weights(crashed.weights, twin.weights, findings)


def measure(
    installation: Installation, seed: int, disturb: Disturb | None, rounds: Mapping[str, int] | None = None
) -> Outcome:
    """Clients at work until the disturbance is over, or for so many rounds; everything checked that needs no twin."""
    findings, home = Findings(), installation.home
    home.mkdir(parents=True, exist_ok=True)
    try:
        installation.start()
        tenants = [
            Tenant(name, installation.url, key, RUNS_OF_A_TENANT, seed, home) for name, key in installation.keys.items()
        ]
        if rounds is not None:
            tenants = [replace(each, rounds=_rounds_of(each, rounds)) for each in tenants]
        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=run_tenant, args=(each,), daemon=True) for each in tenants]
        for process in processes:
            process.start()
        files = [tenant.transcript(i) for tenant in tenants for i in range(tenant.num_runs)]
        kills = disturb(installation, files) if disturb else []
        (home / STOP_FILE).touch()
        _join(processes, RECOVERY_TIMEOUT_S if rounds is None else None)
        outcome = Outcome(kills, read_transcripts(files), {}, findings=findings)
        check_clients(outcome.transcripts, findings)
        check(installation, outcome)
    finally:
        installation.destroy()
    return outcome


def check(installation: Installation, outcome: Outcome) -> None:
    """Start once more, which sweeps; fetch results again; then look at the rows and files that are left."""
    installation.wait_ready()
    installation.stop()
    installation.start()
    log = Log(installation.database_url)
    pairs = check_log(log, outcome.transcripts, outcome.findings)
    outcome.num_requests = len(log.requests)
    outcome.num_refetched = check_results(installation.url, installation.keys, pairs, outcome.findings)
    installation.stop()
    log = Log(installation.database_url)
    for each in installation.drafts():
        outcome.findings.add("files", f"left over: {each}")
    blobs = installation.open_blobs()
    outcome.num_objects = check_files(log, blobs, outcome.findings)
    outcome.weights = final_files(log, blobs, outcome.transcripts)
    blobs.close()


@dataclass(slots=True)
class Killer:
    """Kills at random moments; returns when everything has been recovered from."""

    num_kills: int
    draw: random.Random
    is_quiet: bool = True

    def __call__(self, installation: Installation, files: Sequence[Path]) -> list[Kill]:
        kills: list[Kill] = []
        is_hurried = False
        while have_answered(files, 0.0) and len(kills) < self.num_kills:
            time.sleep(self.draw.uniform(0.1, 2.0) if is_hurried else self.draw.uniform(0.5, 4.0))
            kinds = installation.kinds()
            kind = self.draw.choices(list(kinds), list(kinds.values()))[0]
            kill, killed_at = Kill(kind, time.monotonic(), is_hurried), time.time()
            restart = installation.kill(kind)
            kills.append(kill)
            time.sleep(self.draw.uniform(0.0, 2.0))
            restart()
            is_hurried = not is_hurried and self.draw.random() < HURRIED and len(kills) < self.num_kills
            if not is_hurried:
                installation.wait_ready()
                if not have_answered(files, killed_at):
                    break
            if not self.is_quiet:
                print(f"{len(kills)} {kind}: {time.monotonic() - kill.at:.1f} s", file=sys.stderr, flush=True)
        return kills


def result_of(form: str, seed: int, crashed: Outcome, wall_s: float) -> dict[str, Any]:
    """The result line."""
    findings = crashed.findings
    answers = [each for loop in crashed.transcripts.values() for each in loop if not each.error]
    return {
        "benchmark": "crash",
        "form": form,
        "seed": seed,
        "is_right": not findings.counts,
        "kills": dict(_grouped([(kill.kind, 1) for kill in crashed.kills], sum)),
        "hurried_kills": sum(kill.is_hurried for kill in crashed.kills),
        "requests": crashed.num_requests,
        "answers": len(answers),
        "refetched": crashed.num_refetched,
        "objects": crashed.num_objects,
        "wrong": dict(findings.counts),
        **{what: findings.counts.get(what, 0) for what in ("errors", "lost", "doubled", "differing_weights")},
        "examples": dict(findings.examples),
        "longest_wait_s": round(max((each.done_at - each.asked_at for each in answers), default=0.0), 2),
        "median_recovery_s": recoveries(crashed),
        "wall_s": round(wall_s, 1),
        "cores": os.cpu_count(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def recoveries(crashed: Outcome) -> dict[str, float]:
    """Median seconds by kind, of the kills that no hurried one followed."""
    followed = [*(kill.is_hurried for kill in crashed.kills[1:]), False]
    times = [
        (kill.kind, _answered_at(crashed.transcripts, kill.at) - kill.at)
        for kill, is_followed in zip(crashed.kills, followed, strict=True)
        if not is_followed
    ]
    return {kind: round(value, 2) for kind, value in _grouped(times, statistics.median)}


def _answered_at(transcripts: Transcripts, moment: float) -> float:
    """When all that was in flight at a moment had been answered."""
    answers = (each for loop in transcripts.values() for each in loop)
    return max((each.done_at for each in answers if each.sent_at <= moment < each.done_at), default=moment)


def _grouped(items: Any, reduce: Callable[[list[Any]], Any]) -> list[tuple[str, Any]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for name, value in items:
        groups[name].append(value)
    return [(name, reduce(values)) for name, values in sorted(groups.items())]


def _rounds_of(tenant: Tenant, rounds: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(rounds.get(tenant.transcript(i).stem, 0) for i in range(tenant.num_runs))


def have_answered(files: Sequence[Path], since: float) -> bool:
    """Wait until every loop has written something since then; False if one has failed or does not."""
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(each.exists() and has_failed(each) for each in files):
            return False
        if all(each.exists() and each.stat().st_mtime > since for each in files):
            return True
        time.sleep(0.05)
    return False


def _join(processes: Sequence[BaseProcess], timeout_s: float | None) -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for process in processes:
        process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
