"""The `tinker` command as people run it: a process of its own with a home of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class TinkerCli:
    """`key` None leaves it to the credentials stored in `home`."""

    url: str
    key: str | None
    home: Path

    def run(self, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "TINKER_BASE_URL": self.url, "HOME": str(self.home), "TINKER_TELEMETRY": "0"}
        environment.pop("TINKER_API_KEY", None)
        if self.key is not None:
            environment["TINKER_API_KEY"] = self.key
        return subprocess.run(
            (sys.executable, "-m", "tinker.cli", *arguments),
            input=text, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT_S,
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        done = self.run("-f", "json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def table(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
