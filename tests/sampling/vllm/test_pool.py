"""A pool when servers lose adapters, break off, go away and come back; who waits, and for whom."""

from dataclasses import replace
from pathlib import Path

import pytest

from openrl.errors import RequestFailed
from openrl.protocol.results import SampleResult
from openrl.sampling.base import SampleJob
from openrl.sampling.vllm import VllmSamplingEngine
from openrl.sampling.vllm_routing import preference
from tests.sampling.jobs import job
from tests.sampling.vllm.conftest import StartEngine, StartServer
from tests.sampling.vllm.pools import Objects, Runner, assert_close, wait_until
from tests.vllm_model import PlainModel
from tests.vllm_server import VllmServer

LONG = list(range(20, 40))


def of_tenant(tenant: str, each: SampleJob) -> SampleJob:
    return replace(each, tenant_id=tenant)


# 21
def test_an_adapter_is_loaded_once_and_again_after_the_server_lost_it(
    start_engine: StartEngine, vllm: VllmServer, objects: Objects
):
    runner = Runner(start_engine(vllm))
    first = runner.sample(job("a", LONG, adapter="1"))
    again = runner.run(*(job(f"b{i}", LONG, adapter="1") for i in range(4)))
    [name] = vllm.adapters
    assert vllm.loads[name] == 1
    vllm.evict(name)
    after = runner.run(*(job(f"c{i}", LONG, adapter="1") for i in range(4)))
    assert list(vllm.adapters) == [name]
    assert objects.num_reads == {"1": 1}
    for result in (*again, *after):
        assert isinstance(result, SampleResult)
        assert_close(result, first)


def test_many_requests_of_a_new_adapter_read_it_once_and_load_it_once(
    start_engine: StartEngine, vllm: VllmServer, objects: Objects
):
    runner = Runner(start_engine(vllm))
    runner.run(*(job(f"r{i}", LONG, adapter="1", max_tokens=1) for i in range(12)))
    assert objects.num_reads["1"] == 1
    assert set(vllm.loads.values()) == {1}


def test_adapters_beyond_the_bound_are_unloaded_and_their_files_go(
    start_engine: StartEngine, vllm: VllmServer, tmp_path: Path
):
    runner = Runner(start_engine(vllm, resident_adapters=2))
    first = runner.sample(job("1", LONG, adapter="1"))
    for key in ("2", "3"):
        runner.sample(job(key, LONG, adapter=key))
    assert len(vllm.adapters) == 2
    assert len(vllm.unloads) == 1
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(vllm.adapters)
    assert_close(runner.sample(job("again", LONG, adapter="1")), first)


def test_adapters_that_the_servers_cache_is_too_small_for_are_unloaded_too(
    start_engine: StartEngine, start_server: StartServer, tmp_path: Path
):
    server = start_server(max_cpu_loras=1)
    runner = Runner(start_engine(server, resident_adapters=2))
    first = [runner.sample(job(f"a{key}", LONG, adapter=key)) for key in "123412"]
    assert len(server.adapters) == 2
    assert len(list((tmp_path / "adapters").iterdir())) == 2
    assert_close(first[4], first[0])


def test_a_server_that_was_restarted_is_used_again_and_nobody_sees_more_than_delay(
    start_engine: StartEngine, start_server: StartServer, plain: PlainModel
):
    server = start_server()
    runner = Runner(start_engine(server))
    first = runner.sample(job("a", LONG, adapter="1"))
    server.stop()
    for number in range(3):
        runner.engine.add(job(f"b{number}", LONG, adapter="1"))
    wait_until(lambda: runner.engine.stats().num_waiting == 3)
    second = start_server(port=server.port)
    for result in runner.wait("b0", "b1", "b2"):
        assert isinstance(result, SampleResult)
        assert_close(result, first)
    assert len(second.adapters) == 1


def test_another_engine_over_the_same_directory_and_server_uses_what_is_there(
    start_engine: StartEngine, vllm: VllmServer, objects: Objects
):
    first = Runner(start_engine(vllm)).sample(job("a", LONG, adapter="1"))
    assert_close(Runner(start_engine(vllm)).sample(job("a", LONG, adapter="1")), first)
    assert objects.num_reads["1"] == 1
    assert set(vllm.loads.values()) == {1}


def test_an_answer_that_breaks_off_is_asked_for_again(start_engine: StartEngine, vllm: VllmServer):
    runner = Runner(start_engine(vllm))
    whole = runner.sample(job("a", LONG, adapter="1"))
    vllm.num_to_break_off = 2
    assert_close(runner.sample(job("b", LONG, adapter="1")), whole)
    assert vllm.num_to_break_off == 0


def test_a_server_that_says_503_is_left_out_and_taken_back(start_engine: StartEngine, start_server: StartServer):
    one, other = start_server(), start_server()
    favourite, spare = sorted((one, other), key=lambda each: preference("1", [one.url, other.url]).index(each.url))
    runner = Runner(start_engine(one, other))
    wait_until(lambda: all(each.condition == "well" for each in runner.engine._pool._replicas.values()))
    runner.sample(job("a", LONG, adapter="1"))
    assert len(favourite.completions) == 1
    favourite.status = 503
    runner.sample(job("b", LONG, adapter="1"))
    assert len(spare.completions) == 1
    favourite.status = None
    wait_until(lambda: _goes_to(runner, favourite))


def _goes_to(runner: Runner, server: VllmServer) -> bool:
    before = len(server.completions)
    runner.sample(job(f"try {len(runner.finished)}", LONG, adapter="1", max_tokens=1))
    return len(server.completions) > before


# 503 of all servers is a wait for their clients, not an error.
def test_jobs_wait_while_no_server_is_well(start_engine: StartEngine, vllm: VllmServer):
    vllm.status = 503
    runner = Runner(start_engine(vllm))
    for number in range(5):
        runner.engine.add(job(f"r{number}", LONG))
    wait_until(lambda: runner.engine.stats().num_waiting == 5)
    assert not runner.engine.has_work()
    vllm.status = None
    assert all(isinstance(result, SampleResult) for result in runner.wait(*(f"r{number}" for number in range(5))))


def test_a_server_that_fails_at_a_request_gets_it_three_times(start_engine: StartEngine, vllm: VllmServer):
    runner = Runner(start_engine(vllm))
    runner.sample(job("a", LONG))
    vllm.completion_status = 500
    [failed] = runner.run(job("b", LONG))
    assert isinstance(failed, RequestFailed)
    assert failed.category == "server"
    vllm.completion_status = None
    runner.sample(job("c", LONG))


def test_what_a_dead_server_had_in_hand_goes_to_another(start_engine: StartEngine, start_server: StartServer):
    servers = start_server(), start_server()
    runner = Runner(start_engine(*servers))
    for server in servers:
        server.may_answer.clear()
    runner.engine.add(job("a", LONG, adapter="1"))
    wait_until(lambda: any(server.num_active for server in servers))
    dead, alive = sorted(servers, key=lambda server: server.num_active, reverse=True)
    alive.may_answer.set()
    dead.status = 503  # its engine is dead: /health says so, and the answer never comes
    [result] = runner.wait("a")
    assert isinstance(result, SampleResult)
    assert len(alive.completions) == 1


# 25
def test_a_cancelled_job_closes_its_connection_and_makes_room(start_engine: StartEngine, vllm: VllmServer):
    runner = Runner(start_engine(vllm, vllm_max_in_flight=1))
    vllm.may_answer.clear()
    runner.engine.add(job("gone", LONG))
    runner.engine.add(job("next", LONG))
    wait_until(lambda: len(vllm.completions) == 1)
    runner.engine.cancel("gone")
    wait_until(lambda: vllm.num_abandoned == 1)
    wait_until(lambda: len(vllm.completions) == 2)
    vllm.may_answer.set()
    runner.wait("next")
    assert set(runner.finished) == {"next"}
    runner.engine.add(job("gone", LONG))  # the same request may come again
    runner.wait("gone")


def test_a_server_never_has_more_than_its_bound(start_engine: StartEngine, vllm: VllmServer):
    runner = Runner(start_engine(vllm, vllm_max_in_flight=4))
    runner.run(*(job(f"r{number}", LONG, num_samples=2, max_tokens=2) for number in range(12)))
    assert vllm.max_active == 2
    [wide] = runner.run(job("wide", LONG, num_samples=9, max_tokens=1))
    assert isinstance(wide, SampleResult)


# 31: a flood of one tenant does not keep another waiting.
def test_the_tenant_with_less_on_the_servers_is_next(start_engine: StartEngine, vllm: VllmServer):
    runner = Runner(start_engine(vllm, vllm_max_in_flight=2))
    runner.sample(job("warm", [1]))
    vllm.may_answer.clear()
    flood = [of_tenant("a", job(f"a{number}", [2, number], max_tokens=1)) for number in range(10)]
    for each in flood:
        runner.engine.add(each)
    runner.engine.add(of_tenant("b", job("b", [3], max_tokens=1)))
    wait_until(lambda: runner.engine.stats().num_waiting == 9)
    vllm.may_answer.set()
    runner.wait("b", *(each.request_id for each in flood))
    order = [body["prompt"] for body in vllm.completions[1:]]
    assert order.index([3]) == 2


def test_the_figures_of_the_servers_are_the_engines(start_engine: StartEngine, start_server: StartServer):
    engine: VllmSamplingEngine = start_engine(start_server(), start_server(), vllm_max_in_flight=7)
    runner = Runner(engine)
    runner.sample(job("a", LONG))
    wait_until(
        lambda: (
            (runner.sample(job(f"{len(runner.finished)}", [1], max_tokens=1)) and True)
            and engine.stats().kv_blocks_total == 800
        )
    )
    assert engine.stats().kv_blocks_used == 200
    assert engine.max_sequences == 14
    spent = runner.finished["a"].device_s
    assert spent is not None
    assert spent > 0.0


def test_a_pool_that_breaks_says_so_and_the_next_jobs_have_a_new_one(
    start_engine: StartEngine, vllm: VllmServer, monkeypatch: pytest.MonkeyPatch
):
    runner = Runner(start_engine(vllm))
    runner.sample(job("a", LONG))

    def explode() -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(runner.engine._pool, "_dispatch", explode)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        runner.run(job("lost", LONG))
    runner.sample(job("b", LONG))
