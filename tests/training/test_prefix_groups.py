"""Which datums of a job are computed together."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openrl.training.prefix_groups import MIN_PREFIX, PrefixGroup, group_datums, row_keys


def keys(tokens: Sequence[int], targets: Sequence[int] | None = None) -> NDArray[np.int64]:
    """Row keys of a datum whose targets are its next tokens unless given."""
    ids = [*tokens[1:], 0] if targets is None else targets
    return row_keys(np.array(tokens, np.int32), np.array(ids, np.int64)[:, None])


PROMPT = list(range(3, 33))
OTHER = list(range(53, 83))


def test_completions_of_one_prompt_share_all_but_its_last_token():
    job = [keys([*PROMPT, 100 + index, 200]) for index in range(4)]
    assert group_datums(job, 1000) == [PrefixGroup(0, 4, 29, 29 + 4 * 3)]


def test_each_prompt_has_its_group_and_a_stranger_is_alone():
    job = [keys([*prompt, index]) for prompt in (PROMPT, OTHER) for index in range(3)]
    job.insert(3, keys([7, 8, 9]))
    assert [(group.first, group.num_datums, group.prefix) for group in group_datums(job, 1000)] == [
        (0, 3, 29),
        (3, 1, 0),
        (4, 3, 29),
    ]


def test_the_prefix_shrinks_only_where_the_group_saves_no_less():
    long = [keys([*PROMPT, index]) for index in range(3)]
    assert len(group_datums([*long, keys([*PROMPT[:21], 99, 98])], 1000)) == 1
    assert len(group_datums([*long, keys([*PROMPT[:19], 99, 98])], 1000)) == 2


def test_equal_datums_keep_one_row_each():
    assert group_datums([keys(PROMPT)] * 3, 1000) == [PrefixGroup(0, 3, 29, 32)]


def test_rows_with_other_targets_are_not_shared():
    targets = [*PROMPT[1:], 0]
    changed = [*targets[:20], 99, *targets[21:]]
    assert group_datums([keys(PROMPT, targets), keys(PROMPT, changed)], 1000)[0].prefix == 20


def test_a_short_prefix_and_other_numbers_of_targets_are_not_shared():
    short = [keys([*PROMPT[:MIN_PREFIX], index]) for index in range(2)]
    assert len(group_datums(short, 1000)) == 2
    wide = row_keys(np.array(PROMPT, np.int32), np.zeros((30, 2), np.int64))
    assert len(group_datums([keys(PROMPT), wide], 1000)) == 2


def test_a_group_that_would_outgrow_the_limit_is_split():
    job = [keys([*PROMPT, index]) for index in range(7)]
    assert [group.num_datums for group in group_datums(job, 29 + 3 * 2)] == [3, 3, 1]
    assert [group.num_datums for group in group_datums(job, 0)] == [1] * 7


DATUMS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 50), st.lists(st.integers(3, 5), min_size=1, max_size=30)), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(datums=DATUMS, max_rows=st.integers(0, 150))
def test_rows_of_the_groups_are_every_token_once_and_give_back_every_datum(
    datums: list[tuple[int, int, list[int]]], max_rows: int
):
    job = [keys([7 + prompt] * length + rest) for prompt, length, rest in datums]
    groups = group_datums(job, max_rows)
    assert [number for group in groups for number in group.datums] == list(range(len(job)))
    for group in groups:
        members = [job[number] for number in group.datums]
        rows = [members[0][: group.prefix], *(member[group.prefix :] for member in members)]
        assert sum(map(len, rows)) == group.num_rows
        assert all(map(len, rows[1:]))
        for member, rest in zip(members, rows[1:], strict=True):
            assert np.array_equal(np.concatenate([rows[0], rest]), member)
        if group.num_datums == 1:
            assert group.prefix == 0
        else:
            assert group.prefix >= MIN_PREFIX
            assert group.num_rows <= max_rows
