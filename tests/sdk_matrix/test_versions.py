"""Every version of the SDK does the main job against a real server, with the numbers of the newest known one."""

import json
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.live_server import LiveServer
from tests.sdk_matrix.comparison import Steps, faults, is_own_fault, unequal
from tests.sdk_matrix.surface import changes
from tests.sdk_matrix.venvs import RESULTS, known_versions, newest_version, package_of, run_module, set_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REFERENCE = known_versions()[-1]
LAST_WITH_ARCHIVE = "0.35.0"
DRIVER = "tests.sdk_matrix.driver"
FIRST: dict[str, str] = {
    "finish": "0.27.2", "external_weights": "0.28.1", "encrypted_weights": "0.33.1", "copy_weights": "0.34.0",
    "cli_external_download": "0.36.0", "cli_external_push_hf": "0.36.0",
}  # fmt: skip
"""Of the versions here, the first that has the step."""
LAST: dict[str, str] = dict.fromkeys(("archive", "cli_download", "cli_push_hf"), LAST_WITH_ARCHIVE)


def lacks(version: str, step: str) -> bool:
    """Whether the version has no such method; all versions here are 0.NN.N, so their names are in order."""
    return version < FIRST.get(step, version) or version > LAST.get(step, version)


@pytest.fixture(scope="module")
def venvs() -> None:
    set_up()
    RESULTS.mkdir(exist_ok=True)


Drive = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def drive(server: LiveServer, venvs: None, tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """What the driver saw with a version; runs once for each. The files are what docs/sdk-versions.md is made of."""

    @cache
    def run(version: str) -> dict[str, Any]:
        work_dir = tmp_path_factory.mktemp("work")
        printed = run_module(version, DRIVER, str(work_dir), TINKER_BASE_URL=server.url, TINKER_API_KEY=server.key)
        (RESULTS / f"{version}.json").write_text(printed)
        return json.loads(printed)

    return run


@pytest.fixture(scope="module")
def reference(drive: Drive) -> Steps:
    """Numbers to compare with: of the newest known version, and of the last that has an archive for what it adds."""
    return {**drive(LAST_WITH_ARCHIVE)["steps"], **drive(REFERENCE)["steps"]}


def test_the_reference_version_passes_every_step(reference: Steps):
    assert not faults(reference)


@pytest.mark.parametrize("version", known_versions()[:-1])
def test_an_older_version_does_the_main_job_with_equal_numbers(drive: Drive, reference: Steps, version: str):
    seen = drive(version)
    assert seen["version"] == version
    for step, error in faults(seen["steps"]).items():
        assert is_own_fault(version, step, error), error
    assert not unequal(seen["steps"], reference)
    assert reference.keys() - seen["steps"].keys() == {step for step in reference if lacks(version, step)}


def test_a_version_newer_than_the_known_ones_is_tried(drive: Drive, reference: Steps):
    """It may fail, but then the reason says what it asks of a server that the reference does not."""
    newest = newest_version()
    if newest in known_versions():
        return
    try:
        seen = drive(newest)["steps"]
        wrong = {**faults(seen), **unequal(seen, reference)}
    except (AssertionError, subprocess.TimeoutExpired) as error:  # the driver did not get to its end
        wrong = {"driver": str(error)}
    if wrong:
        news = changes(package_of(REFERENCE), package_of(newest))
        pytest.xfail("\n".join([f"tinker {newest} fails: {wrong}", f"what changed since {REFERENCE}:", *news]))


def test_what_changes_between_versions_is_told(venvs: None):
    told = changes(package_of("0.36.0"), package_of("0.38.0"))
    assert "- field ClientConfigResponse.create_model_via_load_weights: bool = False" in told
    assert "+ method RestClient.get_server_capabilities(self)" in told
    assert "+ endpoint save_weights_external" in changes(package_of("0.27.2"), package_of("0.28.1"))
