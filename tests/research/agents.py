"""Studies with a scripted agent: what it does in an attempt's turn is a line of Python."""

import sys
from collections.abc import Mapping
from pathlib import Path

from openrl.research.study import STUDY_FILE

SOURCE = Path(__file__).parents[2] / "src"
ATTEMPT = f"""\
import json, sys
from pathlib import Path
sys.path.insert(0, {str(SOURCE)!r})
from openrl.research import Attempt
from settings import X

Path("left-by-the-run.txt").write_text("not in the next turn")
attempt = Attempt.current(defaults={{}})
attempt.report(1, score=X + 0.001 * attempt.seed, final=X)
"""
AGENT = """\
import os, sys, time
from pathlib import Path

number, prompt = int(os.environ["OPENRL_ATTEMPT"]), sys.stdin.read()

def why(words):
    Path(os.environ["OPENRL_WHY_FILE"]).write_text(words)

def set_x(x):
    Path("settings.py").write_text(f"X = {x}\\n")
    why(f"X is {x}")

exec(SCRIPT.get(number, "pass"))
"""


def write_agent_study(
    directory: Path, script: Mapping[int, str], attempts: int, agent: str = "", text: str = ""
) -> Path:
    """A program whose score is the X of settings.py, 1 at first; `script` has what happens in each attempt's turn."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory.parent / f"{directory.name}-agent.py"
    program.write_text(f"SCRIPT = {dict(script)!r}\n" + AGENT)
    (directory / "attempt.py").write_text(ATTEMPT)
    (directory / "settings.py").write_text("X = 1\n")
    (directory / STUDY_FILE).write_text(
        f'name = "study"\ncommand = [{sys.executable!r}, "attempt.py"]\nmetric = "score"\n{text}\n'
        f'[agent]\ncommand = [{sys.executable!r}, {str(program)!r}]\neditable = ["settings.py", "lib/*.py"]\n'
        f"attempts = {attempts}\n{agent}\n[budget]\nattempts = 20\n"
    )
    return directory
