"""The Dockerfiles are clean, and what the slim image leaves out is not needed there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.kubernetes.chart import ROOT
from tests.live_server import environment

IMAGES = ROOT / "deploy" / "images"
ENGINES = {"torch", "transformers", "jaxtyping"}
MORE = {"huggingface_hub", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk", "tinker", "httpx", "pyyaml"}


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    files = sorted(str(path) for path in IMAGES.glob("Dockerfile*") if path.suffix != ".dockerignore")
    assert len(files) == 2
    found = subprocess.run([str(hadolint), *files], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_slim_image_has_every_dependency_but_the_engines():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=~!]", each)[0] for each in declared}
    listed = {line for line in (IMAGES / "slim.txt").read_text().splitlines() if line and not line.startswith("#")}
    assert listed == (names - ENGINES) | MORE


def test_gateway_scheduler_and_jobs_start_without_the_engines():
    program = f"import sys; sys.modules.update(dict.fromkeys({sorted(ENGINES)})); import openrl.cli.main"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())


def test_bases_are_pinned_and_nobody_is_root():
    for path in (IMAGES / "Dockerfile", IMAGES / "Dockerfile.cuda"):
        text = path.read_text()
        assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {"${BASE}", *re.findall(r" AS (\S+)", text)}
        assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
