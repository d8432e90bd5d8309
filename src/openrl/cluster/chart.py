"""Renders the Helm chart, by `helm` where it is installed, else by its Python binding."""

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import yaml

from openrl.errors import InvalidRequest, Unavailable

ONE_MACHINE: dict[str, Any] = {"scheduler": {"patchDeletionCost": False}}
"""Values under the given ones: there is no API server whose pods could be patched."""
_BINDING = "helm_python"
_PLACES = (Path(__file__).parent / "chart", Path(__file__).parents[3] / "deploy" / "helm" / "openrl")


class _Chart(Protocol):
    """What is used of the binding's charts."""

    def render(self, values: dict[str, Any], name: str, namespace: str) -> dict[str, str]: ...
    def __enter__(self) -> "_Chart": ...
    def __exit__(self, *error: object) -> None: ...


def find_chart() -> Path:
    """The chart of this installation, or of the repository."""
    for place in _PLACES:
        if (place / "Chart.yaml").is_file():
            return place
    raise Unavailable("the chart is not installed; give its directory by --chart")


def render(chart: Path, values_files: Sequence[Path], name: str, namespace: str) -> str:
    """The chart's manifests. Raises InvalidRequest for values that it refuses, Unavailable without a renderer."""
    if shutil.which("helm"):
        return _by_helm(chart, values_files, name, namespace)
    if importlib.util.find_spec(_BINDING):
        return _by_binding(chart, merged_values(values_files), name, namespace)
    raise Unavailable(
        "rendering the chart needs `helm` on the PATH, or pip install 'openrl[up]'; or give rendered manifests by "
        "--manifests FILE"
    )


def merged_values(files: Sequence[Path]) -> dict[str, Any]:
    """What the files say, later ones over earlier ones, over what one machine needs."""
    values = ONE_MACHINE
    for file in files:
        try:
            given: Any = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InvalidRequest(f"the values {file} cannot be read: {error}") from error
        if not isinstance(given, dict):
            raise InvalidRequest(f"the values {file} are no mapping")
        values = _merged(values, cast(dict[str, Any], given))
    return values


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm merges: mappings key by key, everything else as a whole."""
    both = dict(base)
    for key, value in over.items():
        old = both.get(key)
        is_mapping = isinstance(old, dict) and isinstance(value, dict)
        both[key] = _merged(cast(dict[str, Any], old), cast(dict[str, Any], value)) if is_mapping else value
    return both


def _by_helm(chart: Path, values_files: Sequence[Path], name: str, namespace: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as first:
        yaml.safe_dump(ONE_MACHINE, first)
        first.flush()
        command = ["helm", "template", name, str(chart), "--namespace", namespace, "--values", first.name]
        for file in values_files:
            command += ["--values", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InvalidRequest(f"helm refuses the values: {done.stderr.strip()}")
    return done.stdout


def _by_binding(chart: Path, values: dict[str, Any], name: str, namespace: str) -> str:
    helm = importlib.import_module(_BINDING)
    try:
        loaded: _Chart = helm.Chart.load(str(chart))
        with loaded:
            texts = loaded.render(values, name=name, namespace=namespace)
    except helm.HelmError as error:
        raise InvalidRequest(f"the chart refuses the values: {error}") from error
    return "\n---\n".join(text for file, text in sorted(texts.items()) if file.endswith((".yaml", ".yml")))
