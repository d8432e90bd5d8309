"""Uniform numbers that are a function of (seed, stream, sample, position) alone.

The batch around a sequence, the machine and the order of work have no part in them.
"""

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

SAMPLED_TOKENS = 0
"""Stream of generated tokens; `position` counts generated tokens."""
PROMPT_ALTERNATIVES = 1
"""Stream of tokens drawn beside the prompt; `position` counts prompt tokens."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: UInt64Array, stream: int, samples: UInt64Array, positions: UInt64Array) -> NDArray[np.float64]:
    """Numbers in the open interval (0, 1), with 52 random bits; the arrays broadcast."""
    state = _mixed(seeds + _STEP)
    for part in (np.full(1, stream, np.uint64), samples, positions):
        state = _mixed(state ^ _mixed(part + _STEP))
    # Adding a half keeps 0 and 1 out: a draw then never lands on a token of probability zero.
    return ((state >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def _mixed(state: UInt64Array) -> UInt64Array:
    """The finaliser of SplitMix64: a bijection whose output bits all depend on all input bits."""
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
