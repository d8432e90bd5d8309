"""Two tenants on one sampling engine."""

from openrl.model.base_model import BaseModel
from openrl.sampling.base import FinishedSample
from tests.sampling.jobs import engine, job, sample
from tests.sampling.test_engine import LONG, assert_same


def test_a_tenant_beside_a_flood_is_served_first_and_nobodys_bits_change(llama: BaseModel):
    shared = engine(llama, max_sequences=4)
    flood = [
        job(f"a{i}", LONG[i : i + 9], num_samples=2, max_tokens=40, seed=i, extra={"tenant_id": "alice"})
        for i in range(6)
    ]
    few = [job(f"b{i}", LONG[i : i + 5], max_tokens=8, seed=i, extra={"tenant_id": "bob"}) for i in range(3)]
    for each in flood:
        shared.add(each)
    ended: list[FinishedSample] = []
    for _ in range(5):
        ended += shared.step()
    for each in few:
        shared.add(each)
    while shared.has_work():
        ended += shared.step()
    assert [each.request_id for each in ended[:3]] == ["b0", "b1", "b2"]
    results = {each.request_id: each.result for each in ended}
    for each in (*flood, *few):
        assert_same(results[each.request_id], sample(engine(llama), each))
