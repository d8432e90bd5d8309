"""The chart's custom resources against their projects' definitions, by npm packages that are generated from those."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.chart import ROOT, Object, by_kind, example_names, render_example

CHECKS = ROOT / ".venv" / "crds"
SCRIPT = Path(__file__).with_name("check_crds.mjs")
KINDS = ("HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor")

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="the checks of custom resources need Node.js")


def complaints(objects: list[Object]) -> list[str]:
    """What the definitions do not allow."""
    assert (CHECKS / ".ready").exists(), "run scripts/crds.sh"
    command = ("node", str(SCRIPT), str(CHECKS))
    done = subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_custom_resource_is_one_that_its_definition_takes():
    objects = [each for name in example_names() for each in render_example(name) if each["kind"] in KINDS]
    assert {each["kind"] for each in objects} == set(KINDS)
    assert complaints(objects) == []


def _unknown_field(spec: dict[str, Any]) -> None:
    spec["minReplicas"] = 0


def _unknown_field_inside(spec: dict[str, Any]) -> None:
    spec["endpoints"][1]["pth"] = "/metrics"


def _wrong_type(spec: dict[str, Any]) -> None:
    spec["pollingInterval"] = "15s"


def _missing(spec: dict[str, Any]) -> None:
    del spec["scaleTargetRef"]["name"]


def _wrong_type_in_a_list(spec: dict[str, Any]) -> None:
    spec["groups"][0]["rules"][0]["labels"] = {"severity": 1}


def _wrong_pattern(spec: dict[str, Any]) -> None:
    spec["rules"][0]["timeouts"]["request"] = "soon"


SPOILED: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "/spec/minReplicas is unknown": ("ScaledObject", _unknown_field),
    "/spec/endpoints/1/pth is unknown": ("ServiceMonitor", _unknown_field_inside),
    "/spec/pollingInterval type": ("ScaledObject", _wrong_type),
    "/spec/scaleTargetRef required": ("ScaledObject", _missing),
    "/spec/groups/0/rules/0/labels/severity type": ("PrometheusRule", _wrong_type_in_a_list),
    "/spec/rules/0/timeouts/request pattern": ("HTTPRoute", _wrong_pattern),
}


def test_what_a_definition_does_not_take_is_found():
    objects: list[Object] = []
    for kind, spoil in SPOILED.values():
        objects.append(copy.deepcopy(by_kind(render_example("everything"), kind)[0]))
        spoil(objects[-1]["spec"])
    found = complaints(objects)
    assert [said for said in SPOILED if not any(said in each for each in found)] == []
    assert len(found) == len(SPOILED)
