"""Contract 31: one tenant's flood does not hold up another; `bench.fairness` measures by how much."""

import tinker
from tinker import types

from tests.contracts.loops import STEP, TEXT, batch, new_run, prompt_of, sample, train


# 31
def test_a_tenant_is_served_while_another_floods_the_server(alice: tinker.ServiceClient, bob: tinker.ServiceClient):
    flooding = alice.create_sampling_client(base_model="tiny").result()
    sampler = bob.create_sampling_client(base_model="tiny").result()
    alone = sample(sampler, TEXT[:6], max_tokens=8, seed=1)
    long = types.SamplingParams(max_tokens=200, stop=[])
    futures = [flooding.sample(prompt_of(TEXT), 8, long) for _ in range(60)]
    try:
        for _ in range(3):
            assert sample(sampler, TEXT[:6], max_tokens=8, seed=1) == alone
        run = new_run(bob)
        train(run, 2)
        # 480 long sequences, 32 at a time: served by arrival, nothing of the other tenant would have come before them.
        assert not futures[-1].future().done()
    finally:
        for future in futures:
            future.future().cancel()


# 31
def test_a_step_does_not_wait_for_the_passes_of_another_tenant(alice: tinker.ServiceClient, bob: tinker.ServiceClient):
    flooding, run = new_run(alice), new_run(bob)
    train(run, 1)
    data = batch(400)
    futures = [flooding.forward_backward(data, "cross_entropy") for _ in range(6)]
    for i in range(3):
        train(run, 1, first=i)
    # Steps that wait for the pass under way, once for the gradient and once for the update, see four or more end.
    assert sum(future.future().done() for future in futures) <= 3
    for future in futures:
        future.result()
    flooding.optim_step(STEP).result()
