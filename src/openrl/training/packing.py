"""Packs the prefix groups of many requests into micro-batches of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Which prefix group of which job."""

    job: int
    group: int


def pack(lengths: Sequence[Sequence[int]], budget: Callable[[], int]) -> Iterator[list[Place]]:
    """Micro-batches of at most `budget()` rows, asked for each as it is taken; a longer group goes alone.

    `lengths[job][group]` in rows. A job's groups keep their order, within a micro-batch and over
    them: gradients add up in that order. Room that a job's next group does not fit is given to later jobs.
    """
    waiting = [list(enumerate(job))[::-1] for job in lengths]
    first = 0
    while first < len(waiting):
        if waiting[first]:
            yield _fill(waiting, first, budget())
        else:
            first += 1


def _fill(waiting: list[list[tuple[int, int]]], first: int, budget: int) -> list[Place]:
    """One micro-batch, taken off the waiting groups; never empty."""
    batch: list[Place] = []
    room = budget
    for job in range(first, len(waiting)):
        groups = waiting[job]
        while groups and (groups[-1][1] <= room or not batch):
            group, length = groups.pop()
            batch.append(Place(job, group))
            room -= length
        if room <= 0:
            break
    return batch
