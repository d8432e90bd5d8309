"""Chooses Triton's interpreter where there is no CUDA; import it before anything that imports triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
