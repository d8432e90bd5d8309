"""Decode attention: compiled where there is a GPU, else interpreted; in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run_checks(**environment: str) -> None:
    checks = "tests/sampling/decode_attention_checks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", checks]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same checks run compiled")
@pytest.mark.timeout(1200)  # 90 s of one core, of which a loaded machine gives a part
def test_decode_attention_equals_plain_attention_when_interpreted():
    run_checks(TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_decode_attention_equals_plain_attention_when_compiled():
    run_checks()
