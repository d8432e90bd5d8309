"""The main job from nothing: fetch a real model, serve it, teach it SQL with the official SDK.

`make demo` runs it; `make demo FULL=1` runs the recorded size. Everything stays in ./demo.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

MODEL = "gemma-3-270m"
ROOT = Path(__file__).parents[1]
OPENRL = (sys.executable, "-c", "from openrl.cli.main import main; main()")
START_TIMEOUT_S = 300.0


@contextlib.contextmanager
def server(out: Path) -> Generator[dict[str, str]]:
    """A running `openrl serve`; yields its url and key."""
    ready = out / "ready.json"
    ready.unlink(missing_ok=True)
    command = (*OPENRL, "serve", "--model", MODEL, "--port", "0", "--data-dir", str(out / "server"))
    with (out / "server.log").open("w") as log:
        process = subprocess.Popen((*command, "--ready-file", str(ready)), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start; its last words, from {out / 'server.log'}:\n{last_words(out)}")
            time.sleep(0.1)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def last_words(out: Path) -> str:
    """The end of the server's log."""
    return (out / "server.log").read_text()[-1000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the larger size: more steps, and joins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    subprocess.run((*OPENRL, "models", "fetch", MODEL), check=True)
    print(f"starting the server (its log: {options.out / 'server.log'})", flush=True)
    with server(options.out) as ready:
        print(f"serving {MODEL} at {ready['url']}", flush=True)
        size = () if options.full else ("--size", "quick")
        script = (sys.executable, "-m", "recipes.text_to_sql.train", *size, "--set", f"seed={options.seed}")
        environment = os.environ | {
            "TINKER_BASE_URL": ready["url"],
            "TINKER_API_KEY": ready["key"],
            "TINKER_TELEMETRY": "0",
        }
        done = subprocess.run((*script, "--out", str(options.out.absolute())), env=environment, cwd=ROOT, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
