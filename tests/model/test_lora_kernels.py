"""The LoRA kernels against their twin: compiled where there is a GPU, else interpreted in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same checks run compiled")
def test_kernels_equal_their_twin_when_interpreted():
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *(path for path in sys.path if path)])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.model.lora_kernel_checks", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_kernels_equal_their_twin_when_compiled():
    from tests.model.lora_kernel_checks import check_all

    check_all("cuda")
