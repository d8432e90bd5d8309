"""Fifty tenants at once for minutes: errors, memory, latency of answers and fairness.

    python -m bench.soak --minutes 10 --json [--form serve] [--tiny]

Every tenant has 4 runs that train in small steps and 40 samples in flight, of the base model and of its runs' latest
snapshots; one more tenant is a real SDK client whose numbers must stay those of the idle server. All of it is on this
machine, load generator included. Traffic begins with a warm-up until every run has stepped and saved; then
`--minutes` are measured:
- errors: answers other than a result, results that cannot be right, requests without an answer at the end;
- growth of anonymous memory of each kind of process, median of the last third against the first;
- completion to answer: from `finished_at` in the request's row (or the client's first poll, where that is later) to the
  client's receipt, p99;
- throughput of the tenants, largest over smallest, samples and steps.
Exits with 1 after errors.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from tests.tiny_model import save_tiny_model

from bench.soak.load import Outcome, soak
from bench.soak.probes import start_probe
from bench.soak.report import report
from bench.soak.servers import FORMS
from bench.soak.tenants import Plan
from openrl.cli.model_paths import find_model

MODEL = "smollm2-135m-instruct"
PROBE_TIMEOUT_S = 300.0


def main() -> None:
    options = read_options()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each request in flight
    os.environ["OPENRL_STORE__RESULT_RETENTION_S"] = "120"  # read by the servers: results are pruned under load
    with tempfile.TemporaryDirectory(prefix="openrl-bench-", dir=options.dir) as directory:
        result = measure(options, Path(directory))
    print(json.dumps(result))
    sys.exit(1 if result["errors"] else 0)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--form", choices=list(FORMS), default="serve")
    parser.add_argument("--model", default=MODEL, help="NAME or NAME=DIR, as for openrl serve")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, for quick checks")
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--runs", type=int, default=4, help="of each tenant")
    parser.add_argument("--samples", type=int, default=40, help="in flight, of each tenant")
    parser.add_argument("--warm-up", type=float, default=10.0, help="at most so many minutes")
    parser.add_argument("--no-probe", action="store_true", help="no SDK client")
    parser.add_argument("--dir", help="where data directories are made")
    parser.add_argument("--json", action="store_true", help="print only the result line")
    return parser.parse_args()


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """One soak; the servers are gone afterwards."""
    model_dir = save_tiny_model(root / "tiny") if options.tiny else find_model(options.model).path
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    plan = Plan(options.runs, options.samples, vocab_size=vocab_size)
    servers = FORMS[options.form](model_dir, root, options.tenants + 1)
    try:
        probe = None if options.no_probe else start_probe(servers.ports[0], servers.keys[-1])
        if probe is not None:
            probe.wait_first(PROBE_TIMEOUT_S)
        outcome: Outcome = uvloop.run(
            soak(servers, plan, options.tenants, 60 * options.minutes, 60 * options.warm_up, probe, not options.json)
        )
        return report(outcome, servers.database_url, options)
    finally:
        servers.stop()


if __name__ == "__main__":
    main()
