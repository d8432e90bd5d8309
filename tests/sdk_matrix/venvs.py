"""The venvs that scripts/setup_sdk_matrix.sh makes: which there are, and how to run a module in one."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".venvs-sdk"
RESULTS = VENVS / "results"
HERE = Path(__file__).parent


def known_versions() -> list[str]:
    """Oldest first; the last one is the version that the others are compared with."""
    return (HERE / "versions.txt").read_text().split()


def newest_version() -> str:
    """The newest on PyPI when the venvs were made."""
    return (VENVS / "newest").read_text().strip()


def set_up() -> None:
    subprocess.run([ROOT / "scripts" / "setup_sdk_matrix.sh"], check=True)


def run_module(version: str, module: str, *arguments: str, **environment: str) -> str:
    """What the module prints, run by the venv of `version`; nothing of the server's own packages is in its path."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(VENVS / version / "bin" / "python"), "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=inherited | environment,
        timeout=280,
    )
    assert done.returncode == 0, f"tinker {version}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def package_of(version: str) -> Path:
    """Where the SDK's source is."""
    (package,) = (VENVS / version).glob("lib/python*/site-packages/tinker")
    return package
