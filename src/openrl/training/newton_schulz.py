"""Orthogonalises matrices by Newton-Schulz iterations, as the Muon optimizer does; see docs/optimizers.md.

Legend: N matrices of one shape, R rows, C columns.
"""

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a·s + b·s³ + c·s⁵ that each step applies to every singular value s (Jordan 2024)."""
NUM_STEPS = 5
EPS = 1e-7
"""Least norm that a matrix is divided by: a matrix of zeros stays zero."""


def orthogonalise(matrices_NRC: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Matrices with the same singular vectors and singular values near 1, in the dtype given."""
    is_tall = matrices_NRC.shape[-2] > matrices_NRC.shape[-1]
    x = matrices_NRC.mT if is_tall else matrices_NRC  # the Gram matrix is of the shorter side
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
