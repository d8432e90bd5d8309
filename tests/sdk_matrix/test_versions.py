"""Every version of the SDK does the main job against a real server, with the numbers of the newest known one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.live_server import LiveServer
from tests.sdk_matrix.venvs import RESULTS, changes, known_versions, newest_version, run_script, set_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REFERENCE = known_versions()[-1]
OWN_FAULTS = {
    ("0.18.0", "cli_push_hf"): "unexpected extra argument (checkpoint_complete)",
    ("0.18.2", "cli_push_hf"): "unexpected extra argument (checkpoint_complete)",
    ("0.20.0", "cli_push_hf"): "unexpected extra argument (checkpoint_complete)",
}
"""Steps that the SDK itself gets wrong, and its words: `list(...)` in that file is the command of this name. It fails
only after it has found the adapter and `checkpoint_complete` in the archive."""


@pytest.fixture(scope="module")
def venvs() -> None:
    set_up()
    RESULTS.mkdir(exist_ok=True)


def drive(server: LiveServer, version: str, work_dir: Path) -> dict[str, Any]:
    """What the driver saw, kept for docs/sdk-versions.md."""
    printed = run_script(version, "driver.py", str(work_dir), TINKER_BASE_URL=server.url, TINKER_API_KEY=server.key)
    (RESULTS / f"{version}.json").write_text(printed)
    return json.loads(printed)


@pytest.fixture(scope="module")
def reference(server: LiveServer, venvs: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The steps of the reference version."""
    return drive(server, REFERENCE, tmp_path_factory.mktemp("reference"))["steps"]


def faults(steps: dict[str, Any]) -> dict[str, str]:
    return {name: step["error"] for name, step in steps.items() if isinstance(step, dict) and "error" in step}


def unequal(steps: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Steps that both versions have, with other numbers."""
    wrong = faults(steps)
    both = steps.keys() & reference.keys() - wrong.keys()
    return {name: (steps[name], reference[name]) for name in sorted(both) if steps[name] != reference[name]}


def test_the_reference_version_passes_every_step(reference: dict[str, Any]):
    assert not faults(reference)


@pytest.mark.parametrize("version", known_versions()[:-1])
def test_an_older_version_does_the_main_job_with_equal_numbers(
    server: LiveServer, reference: dict[str, Any], version: str, tmp_path: Path
):
    seen = drive(server, version, tmp_path)
    assert seen["version"] == version
    for step, error in faults(seen["steps"]).items():
        assert OWN_FAULTS.get((version, step), "no fault is expected here") in error, error
    assert not unequal(seen["steps"], reference)
    has_archive = "archive" in seen["steps"]
    assert has_archive == (version < "0.36"), "the archive left the SDK in 0.36"
    missing = reference.keys() - seen["steps"].keys()
    assert missing <= {"finish"}, "older versions lack only the end of sessions"


def test_a_version_newer_than_the_known_ones_is_tried(server: LiveServer, reference: dict[str, Any], tmp_path: Path):
    """It may fail, but then the reason says what it asks of a server that the reference does not."""
    newest = newest_version()
    if newest in known_versions():
        return
    try:
        seen = drive(server, newest, tmp_path)["steps"]
        wrong = {**faults(seen), **unequal(seen, reference)}
    except AssertionError as error:  # the driver did not get to its end
        wrong = {"driver": str(error)}
    if wrong:
        told = "\n".join([f"tinker {newest} fails: {wrong}", "changes:", *changes(REFERENCE, newest)])
        pytest.xfail(told)


def test_what_changes_between_versions_is_told(venvs: None):
    told = changes("0.36.0", "0.38.0")
    assert "- client/config create_model_via_load_weights = False" in told
    assert "+ method RestClient.get_server_capabilities(self)" in told
    assert "+ endpoint sessions/{}/finish" in changes("0.27.2", "0.28.1")
