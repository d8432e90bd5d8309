"""The update of a run's weights by Dimuon: momentum, orthogonalised matrix by matrix (docs/optimizers.md)."""

import math
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.training.base import DimuonParams
from openrl.training.newton_schulz import orthogonalise
from openrl.training.runs import TrainingRun

UPDATE_RMS = 0.2
"""Root mean square of an update's entries at learning rate 1: about that of AdamW's."""


def apply_dimuon(run: TrainingRun, gradients_P: Float[Tensor, " P"], params: DimuonParams) -> None:
    """Move momentum and weights by one step; factors of one shape are orthogonalised together."""
    momentum_P = run.exp_avg_P
    momentum_P.lerp_(gradients_P, 1 - params.beta1)
    direction = _factors(run, gradients_P.lerp(momentum_P, params.beta1))  # Nesterov's look ahead
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for place, factor in enumerate(direction):
        by_shape[factor.shape].append(place)
    weights = _factors(run, run.weights_P)
    for shape, places in by_shape.items():
        updates = orthogonalise(torch.stack([direction[place] for place in places]))
        step = params.learning_rate * UPDATE_RMS * math.sqrt(max(shape))
        for place, update in zip(places, updates, strict=True):
            weights[place].sub_(update, alpha=step)


def _factors(run: TrainingRun, flat_P: Float[Tensor, " P"]) -> list[Tensor]:
    return [part for pair in run.layout.pairs(flat_P).values() for part in (pair.a_RD, pair.b_OR)]
