"""Chooses the replica of a request: rendezvous hashing with bounded load. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

SLACK = 1.25
"""A replica takes more while it has less than this times the mean of all."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """A replica that is well, and the samples that it has in hand for us."""

    name: str
    num_samples: int


def preference(key: str, names: Sequence[str]) -> list[str]:
    """The replicas in the order in which `key` wants them; one that leaves or comes moves no other past another."""
    return sorted(names, key=lambda name: (_weight(key, name), name), reverse=True)


def choose_replica(key: str, wanted: int, loads: Sequence[ReplicaLoad], max_in_flight: int) -> str | None:
    """Where `wanted` samples of `key` go: the first in its order that is not too full; None where all are full.

    So one or two replicas hold an adapter, and what is asked for most spills over to the next ones. A request of more
    samples than a replica may have goes to one that has nothing else.
    """
    mean = (sum(load.num_samples for load in loads) + wanted) / max(len(loads), 1)
    num_samples = {load.name: load.num_samples for load in loads}
    for name in preference(key, list(num_samples)):
        held = num_samples[name]
        has_room = held + wanted <= max_in_flight or held == 0
        if has_room and held < SLACK * mean:
            return name
    return None


def _weight(key: str, name: str) -> bytes:
    return hashlib.blake2b(f"{key}\n{name}".encode(), digest_size=16).digest()
