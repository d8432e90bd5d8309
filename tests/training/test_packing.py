"""Properties of packing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.training.packing import Place, pack

LENGTHS = st.lists(st.lists(st.integers(1, 40), max_size=12), max_size=6)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 64))
def test_every_group_is_packed_once_in_order_and_within_budget(lengths: list[list[int]], budget: int):
    batches = list(pack(lengths, lambda: budget))
    places = [place for batch in batches for place in batch]
    assert len(places) == len(set(places)) == sum(map(len, lengths))
    for job in range(len(lengths)):
        assert [place.group for place in places if place.job == job] == list(range(len(lengths[job])))
    for batch in batches:
        assert batch
        assert [place.job for place in batch] == sorted(place.job for place in batch)
        tokens = sum(lengths[place.job][place.group] for place in batch)
        assert tokens <= budget or len(batch) == 1


def test_room_that_a_long_group_leaves_goes_to_the_next_job():
    assert list(pack([[6, 6], [3, 3, 3]], lambda: 10)) == [
        [Place(0, 0), Place(1, 0)],
        [Place(0, 1)],
        [Place(1, 1), Place(1, 2)],
    ]


def test_what_does_not_fit_at_once_is_divided_evenly():
    assert [len(batch) for batch in pack([[1] * 25], lambda: 8)] == [7, 6, 6, 6]


def test_each_micro_batch_has_the_budget_of_its_moment():
    budgets = iter([4, 1, 100])
    assert list(pack([[2, 2, 2, 2, 2]], lambda: next(budgets))) == [
        [Place(0, 0), Place(0, 1)],
        [Place(0, 2)],
        [Place(0, 3), Place(0, 4)],
    ]
