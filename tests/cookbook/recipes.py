"""Runs recipes of tinker-cookbook as their users do, from the command line."""

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.table import Row
from tests.live_server import LiveServer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-cookbook" / "bin" / "python"
OLD = str(ROOT / ".cookbook-0.5.5")
OLD_WITH_ITS_SDK = f"{OLD}:{OLD}/sdk"
"""0.5.5 with SDK 0.25.0, the newest when it came."""
MODEL = f"model_name={SERVED_NAME}"
FRESH = "behavior_if_log_dir_exists=delete"
RESUME = "behavior_if_log_dir_exists=resume"
GRADE_SCHOOL = (
    "dataset_builder=tinker_cookbook.recipes.math_rl.math_env:Gsm8kDatasetBuilder",
    "dataset_builder.batch_size=4",
    "dataset_builder.group_size=2",
    "dataset_builder.renderer_name=qwen3",
    f"dataset_builder.model_name_for_tokenizer={SERVED_NAME}",
)
"""What rl_basic has, in small; its own batch is 128 problems of 16 rollouts."""
RECIPE_TIMEOUT_S = 600
LIBRARY_CALL = Path(__file__).with_name("library_call.py")
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe that came to its end."""

    recipe: str
    options: tuple[str, ...]
    log: Path
    output: str
    seconds: float

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step."""
        return read_lines(self.log / "metrics.jsonl")

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        return read_lines(self.log / "checkpoints.jsonl")

    def values(self, name: str) -> list[float]:
        """This metric at every step that has it; at least one does."""
        found = [step[name] for step in self.metrics if name in step]
        assert found, f"no {name} among {sorted({key for step in self.metrics for key in step})}"
        return found


@dataclass(frozen=True, slots=True)
class Recipes:
    """A server, a directory to start in, and what has been shown so far."""

    server: LiveServer
    workspace: Path
    model: Path
    rows: list[Row] = field(default_factory=list[Row])

    def run(
        self,
        recipe: str,
        *options: str,
        log: Path | None = None,
        own_log: bool = False,
        answers: str = "",
        source: str = "",
        package: str = "tinker_cookbook.recipes",
        environment: Mapping[str, str] = NOTHING,
    ) -> Run:
        """Run `<package>.<recipe>`, from the `source` of another version where one is given.

        `log_path` is a new directory unless `log` names one, or the recipe makes its `own_log`;
        `answers` stands on its standard input.
        """
        log = log or self.new_log(recipe)
        logs = () if own_log else (f"log_path={log}",)
        started = time.monotonic()
        output = self._python(("-m", f"{package}.{recipe}", *options, *logs), source, answers, environment)
        return Run(recipe, options, log, output, time.monotonic() - started)

    def call(self, function: str, *options: str, source: str = "", environment: Mapping[str, str] = NOTHING) -> Run:
        """Call `tinker_cookbook.<function>` with options of the form name=value."""
        called = self.script(LIBRARY_CALL, function, function, *options, source=source, environment=environment)
        return Run(function, options, called.log, called.output, called.seconds)

    def script(
        self, file: Path, name: str, *options: str, source: str = "", environment: Mapping[str, str] = NOTHING
    ) -> Run:
        """Run a file with the cookbook's packages; the table calls it `name`."""
        started = time.monotonic()
        output = self._python(("-P", str(file), *options), source, "", environment)
        return Run(name, options, self.workspace, output, time.monotonic() - started)

    def new_log(self, recipe: str) -> Path:
        logs = self.workspace / "runs"
        return logs / f"{recipe}-{len(list(logs.iterdir())) if logs.exists() else 0}"

    def note(self, runs: Run | Sequence[Run], checked: str, figure: str) -> None:
        """What the table says of these runs."""
        runs = [runs] if isinstance(runs, Run) else runs
        options = " ".join(each for each in runs[0].options if each not in (MODEL, FRESH, RESUME))
        told = re.sub(
            r"tinker://\S+/", "tinker://…/", options.replace(f"{self.workspace}/", "").replace(str(self.model), "model")
        )
        self.rows.append(Row(runs[0].recipe, told, sum(run.seconds for run in runs), checked, figure))

    def _python(self, arguments: Sequence[str], source: str, answers: str, environment: Mapping[str, str]) -> str:
        """All that it prints; it must end well."""
        done = subprocess.run(
            [str(PYTHON), *arguments],
            cwd=self.workspace,
            env={**self._environment(source), **environment},
            input=answers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RECIPE_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def _environment(self, source: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | {
            "PYTHONPATH": source,
            "TINKER_BASE_URL": self.server.url,
            "TINKER_API_KEY": self.server.key,
            "TINKER_TELEMETRY": "0",
            "TINKER_COOKBOOK_RUNS_DIR": str(self.workspace / "runs"),
            "HF_HOME": str(self.workspace / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def interrupted(run: Run, name: str, copy: Path) -> Path:
    """A log directory as the run would have left it when it ended just after the checkpoint of that name."""
    saved = run.checkpoints
    last = [each["name"] for each in saved].index(name)
    copy.mkdir(parents=True)
    (copy / "checkpoints.jsonl").write_text("".join(json.dumps(each) + "\n" for each in saved[: last + 1]))
    return copy
