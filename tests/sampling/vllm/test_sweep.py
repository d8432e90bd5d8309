"""Files of adapters that no server has: left by a process that was killed, lost by a server, never loaded."""

from pathlib import Path

import pytest

from openrl.errors import RequestFailed
from openrl.sampling.vllm_adapters import CONFIG_FILE, AdapterDirectory
from tests.sampling.jobs import job
from tests.sampling.vllm.conftest import StartEngine, StartServer
from tests.sampling.vllm.pools import Objects, Runner, assert_close, wait_until
from tests.vllm_server import VllmServer

PROMPT = list(range(20, 40))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the engines of these tests write."""
    return tmp_path / "adapters"


def leave(root: Path, name: str) -> Path:
    """What a process that was killed leaves behind."""
    path = root / name
    path.mkdir(parents=True)
    (path / CONFIG_FILE).write_text("{}")
    return path


def test_what_a_killed_process_left_goes_at_the_start_and_what_a_server_has_stays(
    start_engine: StartEngine, vllm: VllmServer, root: Path, objects: Objects
):
    first = Runner(start_engine(vllm)).sample(job("a", PROMPT, adapter="1"))
    [kept] = root.iterdir()
    stale, torn = leave(root, "openrl-stale"), leave(root, ".openrl-torn.17")
    runner = Runner(start_engine(vllm))
    assert not torn.exists()
    wait_until(lambda: not stale.exists())
    assert list(vllm.adapters.values()) == [str(kept)]
    assert_close(runner.sample(job("a", PROMPT, adapter="1")), first)
    assert objects.num_reads["1"] == 1


def test_nothing_goes_while_a_server_has_not_said_what_it_has(
    start_engine: StartEngine, start_server: StartServer, root: Path
):
    well, silent = start_server(), start_server()
    silent.status = 503
    stale = leave(root, "openrl-stale")
    runner = Runner(start_engine(well, silent))
    runner.sample(job("a", PROMPT, adapter="1"))
    assert stale.exists()
    silent.status = None
    wait_until(lambda: not stale.exists())


def test_what_a_server_lost_with_its_restart_goes(start_engine: StartEngine, start_server: StartServer, root: Path):
    server = start_server()
    runner = Runner(start_engine(server))
    runner.sample(job("a", PROMPT, adapter="1"))
    [lost] = root.iterdir()
    server.stop()
    runner.engine.add(job("b", PROMPT, adapter="2"))
    wait_until(lambda: runner.engine.stats().num_waiting == 1)  # it was seen away
    again = start_server(port=server.port)
    runner.wait("b")
    wait_until(lambda: not lost.exists())
    assert list(again.adapters.values()) == [str(path) for path in root.iterdir()]


def test_what_no_server_would_load_goes(start_engine: StartEngine, vllm: VllmServer, root: Path):
    runner = Runner(start_engine(vllm))
    vllm.load_status = 400
    [failed] = runner.run(job("a", PROMPT, adapter="1"))
    assert isinstance(failed, RequestFailed)
    wait_until(lambda: not list(root.iterdir()))
    vllm.load_status = None
    runner.sample(job("b", PROMPT, adapter="1"))


async def test_files_that_are_needed_again_by_their_turn_stay(tmp_path: Path, objects: Objects):
    directory = AdapterDirectory(tmp_path, objects.read)
    path = await directory.have("1")
    await directory.delete(path.name, lambda: True)
    assert path.is_dir()
    await directory.delete(path.name, lambda: False)
    assert not list(tmp_path.iterdir())
    await directory.delete(path.name, lambda: False)
