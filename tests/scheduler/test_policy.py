from hypothesis import given
from hypothesis import strategies as st

from openrl.rpc.messages import WorkerReady
from openrl.scheduler.policy import (
    MIN_COST_TOKENS,
    FairQueue,
    FairShare,
    PassBudget,
    SampleLoad,
    choose_run_worker,
    choose_sample_worker,
    has_room,
)

TENANTS = st.sampled_from(["a", "b", "c"])


def serve_next(queue: FairQueue, tenants: dict[str, str], costs: dict[str, int]) -> str:
    item = queue.pop()
    assert item is not None
    queue.share.serve(tenants[item])
    queue.share.charge(tenants[item], costs[item])
    return item


def test_within_a_tenant_the_oldest_goes_first():
    queue = FairQueue(FairShare())
    for order in (3, 1, 2):
        queue.push("a", order, f"item{order}")
    assert [queue.pop() for _ in range(4)] == ["item1", "item2", "item3", None]


def test_a_newcomer_goes_before_the_rest_of_a_flood():
    queue, tenants, costs = FairQueue(FairShare()), dict[str, str](), dict[str, int]()
    for i in range(100):
        queue.push("a", i, f"a{i}")
        tenants[f"a{i}"], costs[f"a{i}"] = "a", 1000
    served = [serve_next(queue, tenants, costs) for _ in range(10)]
    queue.push("b", 1000, "b0")
    assert served[-1] == "a9"
    assert queue.pop() == "b0"


def test_absence_earns_no_credit():
    share = FairShare()
    for _ in range(50):
        share.arrive("a")
        share.serve("a")
        share.charge("a", 1000)
    share.arrive("b")
    assert share.time_of("b") >= share.time_of("a") - 1000


@given(st.lists(st.tuples(TENANTS, st.integers(1, 3000)), min_size=1, max_size=60))
def test_backlogged_tenants_get_equal_work_within_one_request(requests: list[tuple[str, int]]):
    queue = FairQueue(FairShare())
    tenants = {str(i): tenant for i, (tenant, _) in enumerate(requests)}
    costs = {str(i): cost for i, (_, cost) in enumerate(requests)}
    for i, (tenant, _) in enumerate(requests):
        queue.push(tenant, i, str(i))
    left = {tenant: sum(t == tenant for t, _ in requests) for tenant in set(tenants.values())}
    given_work = dict.fromkeys(left, 0)
    most = max(max(costs.values()), MIN_COST_TOKENS)
    while all(left.values()):
        item = serve_next(queue, tenants, costs)
        left[tenants[item]] -= 1
        given_work[tenants[item]] += max(costs[item], MIN_COST_TOKENS)
        assert max(given_work.values()) - min(given_work.values()) <= most


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "discard"]), TENANTS, st.integers(0, 8))))
def test_the_queue_holds_what_was_pushed_and_not_taken(steps: list[tuple[str, str, int]]):
    queue, held = FairQueue(FairShare()), dict[str, int]()
    for order, (step, tenant, number) in enumerate(steps):
        item = f"{tenant}{number}"
        if step == "push":
            queue.push(tenant, order, item)
            held[item] = order
        elif step == "discard":
            queue.discard(item)
            held.pop(item, None)
        else:
            popped = queue.pop()
            assert (popped is None) == (not held)
            if popped is not None:
                assert held.pop(popped) <= min((o for i, o in held.items() if i[0] == popped[0]), default=order)
                queue.share.charge(popped[0], number)
        assert len(queue) == len(held)


def test_the_first_request_always_fits_a_pass():
    budget = PassBudget("forward_backward", 100)
    assert budget.fits(5000)
    budget.add(5000)
    assert budget.is_full()


def test_a_pass_stops_at_its_tokens():
    budget = PassBudget("forward_backward", 100)
    budget.add(60)
    assert budget.fits(40)
    assert not budget.fits(41)


def test_steps_are_packed_by_number_not_by_tokens():
    budget = PassBudget("optim_step", 100)
    for _ in range(64):
        assert budget.fits(1000)
        budget.add(1000)
    assert budget.is_full()


def test_runs_go_to_the_worker_with_the_fewest_that_serves_their_model():
    tiny, other = WorkerReady("w", ("tiny",), 100, 4), WorkerReady("w", ("other",), 100, 4)
    assert choose_run_worker([(tiny, "w1", 3), (tiny, "w2", 2), (other, "w3", 0)], "tiny") == "w2"
    assert choose_run_worker([(other, "w3", 0)], "tiny") is None


def test_samples_go_where_their_adapter_is_while_there_is_room():
    empty, warm = SampleLoad("w1", 0, 4, has_adapter=False), SampleLoad("w2", 5, 4, has_adapter=True, num_of_tenant=5)
    assert choose_sample_worker([empty, warm], 3) == "w2"
    assert choose_sample_worker([empty, warm], 4) == "w1"


def test_a_request_larger_than_a_worker_goes_when_the_worker_would_run_short():
    assert has_room(SampleLoad("w", 3, 4, has_adapter=True, num_of_tenant=3), 1000)
    assert not has_room(SampleLoad("w", 4, 4, has_adapter=True, num_of_tenant=4), 1000)


def test_a_tenant_gets_its_part_of_a_worker_that_another_has_filled():
    def full(num_of_tenant: int, num_tenants: int) -> SampleLoad:
        return SampleLoad("w", 16, 8, has_adapter=True, num_of_tenant=num_of_tenant, num_tenants=num_tenants)

    assert has_room(full(0, 2), 1000)
    assert has_room(full(2, 2), 2)
    assert not has_room(full(2, 2), 3)
    assert not has_room(full(2, 4), 1)
    assert not has_room(full(16, 1), 1)
