"""Random numbers depend on their counters and on nothing else."""

import numpy as np

from openrl.sampling.randomness import PROMPT_ALTERNATIVES, SAMPLED_TOKENS, UInt64Array, uniforms


def u64(*values: int) -> UInt64Array:
    return np.array(values, np.uint64)


def test_a_number_does_not_depend_on_those_beside_it():
    alone = uniforms(u64(2**64 - 1), SAMPLED_TOKENS, u64(3), u64(7))
    together = uniforms(u64(5, 2**64 - 1, 0), SAMPLED_TOKENS, u64(1, 3, 3), u64(7, 7, 7))
    assert together[1] == alone[0]


def test_every_counter_changes_the_number():
    base = (u64(1), SAMPLED_TOKENS, u64(2), u64(3))
    others = [
        (u64(2**63 + 1), SAMPLED_TOKENS, u64(2), u64(3)),
        (u64(1), PROMPT_ALTERNATIVES, u64(2), u64(3)),
        (u64(1), SAMPLED_TOKENS, u64(3), u64(2)),
        (u64(1), SAMPLED_TOKENS, u64(2), u64(4)),
    ]
    numbers = [float(uniforms(*counters)[0]) for counters in (base, *others)]
    assert len(set(numbers)) == 5


def test_numbers_are_uniform_and_uncorrelated_between_neighbours():
    numbers = uniforms(u64(9), SAMPLED_TOKENS, np.arange(64, dtype=np.uint64)[:, None], np.arange(512, dtype=np.uint64))
    counts, _ = np.histogram(numbers, bins=16, range=(0.0, 1.0))
    assert abs(counts / numbers.size - 1 / 16).max() < 0.006
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02
    assert numbers.min() > 0.0
    assert numbers.max() < 1.0
