from prometheus_client import CollectorRegistry, generate_latest

from openrl.telemetry.recent import RecentCounter


def counter(max_owners: int) -> tuple[RecentCounter, CollectorRegistry]:
    registry = CollectorRegistry()
    made = RecentCounter("openrl_run_gpu_seconds", "Text.", ("tenant", "run"), "kind", max_owners)
    registry.register(made)
    return made, registry


def test_owners_that_count_last_are_shown():
    made, registry = counter(2)
    for run_id in ("a", "b", "a", "c"):
        made.add(("t", run_id), "sample", 1.5)
    text = generate_latest(registry).decode()
    assert 'openrl_run_gpu_seconds_total{kind="sample",run="a",tenant="t"} 3.0' in text
    assert 'run="c"' in text
    assert 'run="b"' not in text


def test_an_owner_that_is_removed_is_shown_no_more():
    made, registry = counter(2)
    made.add(("t", "a"), "sample", 1.0)
    made.remove(("t", "a"))
    made.remove(("t", "unknown"))
    assert 'run="a"' not in generate_latest(registry).decode()


def test_without_room_nothing_is_counted():
    made, registry = counter(0)
    made.add(("t", "a"), "sample", 1.0)
    assert 'run="a"' not in generate_latest(registry).decode()
