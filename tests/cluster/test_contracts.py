"""The contracts hold on a cluster over PostgreSQL as they do on one process over SQLite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_contract_holds_on_a_cluster():
    command = [sys.executable, "-m", "pytest", "-q", "tests/contracts", "-m", "not gpu and not slow"]
    environment = {**os.environ, "OPENRL_TEST_CLUSTER": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-5000:]
