"""Finds neighbouring datums of one job that begin alike, so that their common rows are computed once.

Legend: N tokens of a datum, K targets of one token.

A group is computed as a whole, and which datums form one follows from the job and the row limit alone: the
rounding of a job's gradients does not depend on who else shares the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_PREFIX = 16
"""Tokens; what a shorter prefix saves does not pay for another segment."""


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Consecutive datums of a job whose first `prefix` rows are the same rows; one datum has a prefix of 0."""

    first: int  # datum
    num_datums: int
    prefix: int  # shorter than each of the datums
    num_rows: int  # the prefix once, and what follows it in each datum

    @property
    def datums(self) -> range:
        """Indices of the datums in their job."""
        return range(self.first, self.first + self.num_datums)


def row_keys(tokens_N: NDArray[np.int32], targets_NK: NDArray[np.int64]) -> NDArray[np.int64]:
    """What must agree for rows to be shared, [N, 1 + K]: the token and its targets."""
    return np.concatenate([tokens_N[:, None].astype(np.int64), targets_NK], axis=1)


def group_datums(keys: Sequence[NDArray[np.int64]], max_rows: int) -> list[PrefixGroup]:
    """All datums in order, in groups of at most `max_rows` rows; a longer datum is alone.

    `keys`: see row_keys. Greedy: a datum joins the group before it where the rows that the group then saves
    are no fewer than without it, even if the common prefix shrinks.
    """
    groups: list[PrefixGroup] = []
    for index, datum in enumerate(keys):
        joined = _join(groups[-1], keys, index, max_rows) if groups else None
        if joined is not None:
            groups[-1] = joined
        else:
            groups.append(PrefixGroup(index, 1, 0, len(datum)))
    return groups


def _join(group: PrefixGroup, keys: Sequence[NDArray[np.int64]], index: int, max_rows: int) -> PrefixGroup | None:
    """The group with one more datum; None where that does not pay or does not fit."""
    first, datum = keys[group.first], keys[index]
    limit = group.prefix or len(first) - 1
    # One row less than the datum: every datum keeps a segment of its own.
    prefix = min(_common_rows(first[:limit], datum), len(datum) - 1)
    saved, saves = group.prefix * (group.num_datums - 1), prefix * group.num_datums
    num_rows = group.num_rows + saved + len(datum) - saves
    if prefix < MIN_PREFIX or saves < saved or num_rows > max_rows:
        return None
    return PrefixGroup(group.first, group.num_datums + 1, prefix, num_rows)


def _common_rows(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """How many rows two datums have in common from the start on."""
    if left.shape[1] != right.shape[1]:
        return 0
    length = min(len(left), len(right))
    differs = (left[:length] != right[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length
