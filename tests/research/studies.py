"""Studies whose command is a few lines of Python that compute a known function."""

import sys
from collections.abc import Mapping
from pathlib import Path

from openrl.research.study import STUDY_FILE

COMMAND = f"""\
import sys
sys.path.insert(0, {str(Path(__file__).parents[2] / "src")!r})
from openrl.research import Attempt

attempt = Attempt.current(defaults={{"x": 0.0, "kind": "a"}})
x, bonus = attempt.params["x"], 1.0 if attempt.params["kind"] == "b" else 0.0
if x == 7:
    raise SystemExit("x is 7")
for step in range(attempt.first_step, 4):
    value = bonus - (x - 3) ** 2 + 0.001 * attempt.seed + 0.1 * step
    if attempt.report(step + 1, score=value, final=value + 0.0001 * attempt.seed):
        break
"""


def write_study(directory: Path, text: str, command: str = COMMAND, **replaced: object) -> Path:
    """A study's directory; `text` is what study.toml has beside name, command and metric."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "attempt.py").write_text(command)
    (directory / STUDY_FILE).write_text(
        f'name = "study"\ncommand = [{sys.executable!r}, "attempt.py"]\nmetric = "score"\n{text}'
    )
    return directory


SPACE = """
[space]
x = {low = 0, high = 6}
kind = {values = ["a", "b"]}
"""


def params_of(x: int, kind: str = "a") -> Mapping[str, object]:
    return {"x": x, "kind": kind}
