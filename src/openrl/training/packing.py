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
    What is left is divided evenly: a small last micro-batch would not fill the device.
    """
    waiting = [list(enumerate(job))[::-1] for job in lengths]
    num_left = sum(map(sum, lengths))
    first = 0
    while first < len(waiting):
        if waiting[first]:
            most = budget()
            batch = _fill(waiting, first, most, -(-num_left // max(-(-num_left // most), 1)))
            num_left -= sum(lengths[place.job][place.group] for place in batch)
            yield batch
        else:
            first += 1


def _fill(waiting: list[list[tuple[int, int]]], first: int, budget: int, wanted: int) -> list[Place]:
    """One micro-batch of at least `wanted` rows, if they fit; taken off the waiting groups, never empty."""
    batch: list[Place] = []
    num_rows = 0
    for job in range(first, len(waiting)):
        groups = waiting[job]
        while groups and num_rows < wanted and (num_rows + groups[-1][1] <= budget or not batch):
            group, length = groups.pop()
            batch.append(Place(job, group))
            num_rows += length
        if num_rows >= wanted:
            break
    return batch
