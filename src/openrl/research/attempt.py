"""What the command of an attempt uses: its parameters, and the way to tell how it goes.

    from openrl.research import Attempt

    attempt = Attempt.current(defaults={"rank": 8, "learning_rate": 1e-4})
    service = attempt.service_client()
    for step in range(attempt.first_step, 100):
        ...
        if attempt.report(step + 1, accuracy=evaluate()):
            break  # not among the best: stopped early

Without a study around it the defaults hold and reports are printed, so that a recipe is an ordinary program.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openrl.research.study import Params

if TYPE_CHECKING:
    import tinker

DIRECTORY_VARIABLE = "OPENRL_ATTEMPT_DIR"
PARAMS_FILE = "params.json"
REPORTS_FILE = "reports.jsonl"
STOP_FILE = "stop"
CHECKPOINT_FILE = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, seen from inside."""

    params: Params
    seed: int
    project_id: str | None
    directory: Path | None

    @classmethod
    def current(cls, defaults: Mapping[str, bool | int | float | str], seed: int = 0) -> "Attempt":
        """The attempt that this process is, or one of the defaults where it is none."""
        place = os.environ.get(DIRECTORY_VARIABLE)
        if place is None:
            return cls(dict(defaults), seed, None, None)
        given = json.loads((Path(place) / PARAMS_FILE).read_text())
        return cls({**defaults, **given["params"]}, given["seed"], given["project_id"], Path(place))

    def service_client(self) -> "tinker.ServiceClient":
        """A client whose use is metered as this attempt's; URL and key come from the environment."""
        import tinker  # noqa: PLC0415  # recipes have it; reading a journal needs none

        return tinker.ServiceClient(project_id=self.project_id)

    def report(self, step: int, **values: float) -> bool:
        """Say how it goes after so many steps; whether the attempt should end now."""
        line = json.dumps({"step": step, "values": values})
        if self.directory is None:
            sys.stdout.write(line + "\n")
            return False
        with (self.directory / REPORTS_FILE).open("a") as file:
            file.write(line + "\n")
        return (self.directory / STOP_FILE).exists()

    def save_checkpoint(self, step: int, path: str) -> None:
        """Note a tinker:// path from which an interrupted attempt can go on."""
        if self.directory is not None:
            new = self.directory / f"{CHECKPOINT_FILE}.new"
            new.write_text(json.dumps({"step": step, "path": path}))
            new.rename(self.directory / CHECKPOINT_FILE)

    @property
    def checkpoint(self) -> tuple[int, str] | None:
        """Step and path of the last noted checkpoint."""
        if self.directory is None or not (self.directory / CHECKPOINT_FILE).exists():
            return None
        noted = json.loads((self.directory / CHECKPOINT_FILE).read_text())
        return noted["step"], noted["path"]

    @property
    def first_step(self) -> int:
        """0, or where the checkpoint is."""
        return 0 if self.checkpoint is None else self.checkpoint[0]
