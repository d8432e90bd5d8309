"""Rendezvous hashing with bounded load: properties that hold for every key and every load."""

import random

from hypothesis import given
from hypothesis import strategies as st

from openrl.sampling.vllm_routing import SLACK, ReplicaLoad, choose_replica, preference

NAMES = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
KEYS = st.text(min_size=1, max_size=20)


@st.composite
def loads(draw: st.DrawFn) -> list[ReplicaLoad]:
    return [ReplicaLoad(name, draw(st.integers(0, 300))) for name in draw(NAMES)]


@given(KEYS, NAMES, st.randoms(use_true_random=False))
def test_the_order_of_a_key_does_not_depend_on_how_the_replicas_are_listed(
    key: str, names: list[str], shuffle: random.Random
):
    mixed = list(names)
    shuffle.shuffle(mixed)
    assert preference(key, mixed) == preference(key, names)


@given(KEYS, NAMES)
def test_a_replica_that_leaves_moves_no_other(key: str, names: list[str]):
    order = preference(key, names)
    for gone in names:
        assert preference(key, [name for name in names if name != gone]) == [name for name in order if name != gone]


@given(KEYS, NAMES)
def test_an_idle_pool_gives_a_key_its_first_choice(key: str, names: list[str]):
    idle = [ReplicaLoad(name, 0) for name in names]
    assert choose_replica(key, 1, idle, 256) == preference(key, names)[0]


@given(KEYS, loads(), st.integers(1, 64))
def test_a_choice_exists_exactly_where_a_replica_has_room(key: str, held: list[ReplicaLoad], wanted: int):
    least = min(load.num_samples for load in held)
    has_room = least + wanted <= 256 or least == 0
    assert (choose_replica(key, wanted, held, 256) is not None) == has_room


@given(KEYS, loads(), st.integers(1, 64))
def test_the_chosen_replica_has_less_than_its_bound_and_those_before_it_are_full(
    key: str, held: list[ReplicaLoad], wanted: int
):
    chosen = choose_replica(key, wanted, held, 256)
    if chosen is None:
        return
    num_samples = {load.name: load.num_samples for load in held}
    bound = SLACK * (sum(num_samples.values()) + wanted) / len(held)
    assert num_samples[chosen] < bound
    for name in preference(key, list(num_samples)):
        if name == chosen:
            break
        assert num_samples[name] >= bound or num_samples[name] + wanted > 256


@given(st.lists(st.tuples(KEYS, st.integers(1, 8)), max_size=200), NAMES)
def test_no_replica_gets_more_than_the_bound_however_skewed_the_keys_are(jobs: list[tuple[str, int]], names: list[str]):
    held = dict.fromkeys(names, 0)
    for key, wanted in jobs:
        chosen = choose_replica(key, wanted, [ReplicaLoad(*each) for each in held.items()], 10**6)
        assert chosen is not None
        held[chosen] += wanted
        assert held[chosen] < SLACK * sum(held.values()) / len(held) + wanted


def test_keys_spread_evenly_and_few_move_when_a_replica_goes():
    names = [f"http://vllm-{i}:8000" for i in range(8)]
    first = {f"key {i}": preference(f"key {i}", names)[0] for i in range(4000)}
    for name in names:
        assert 400 < sum(chosen == name for chosen in first.values()) < 600
    kept = names[:-1]
    moved = [key for key, chosen in first.items() if preference(key, kept)[0] != chosen]
    assert all(first[key] == names[-1] for key in moved)
