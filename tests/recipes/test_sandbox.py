"""The sandbox against code that tries to use more than it may have."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.sandbox import Limits, Sandbox, SandboxUnavailable

LIMITS = Limits(timeout_s=3.0, cpu_s=1, memory_bytes=128 * 2**20, result_bytes=10_000)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox("tests.recipes.hostile_code:execute", LIMITS) as sandbox:
        yield sandbox


def is_well(sandbox: Sandbox) -> bool:
    return sandbox.run("result = 6 * 7").value == 42


def test_a_result_comes_back(sandbox: Sandbox):
    assert sandbox.run("result = [sum(range(10)), 'text', None, 1.5]").value == [45, "text", None, 1.5]


def test_an_exception_is_its_words(sandbox: Sandbox):
    outcome = sandbox.run("1 / 0")
    assert (outcome.ending, outcome.value) == ("failed", "ZeroDivisionError: division by zero")


def test_jobs_share_nothing(sandbox: Sandbox):
    sandbox.run("import builtins; builtins.len = lambda _: 7; builtins.stolen = 1")
    assert sandbox.run("result = len('ab'), 'stolen' in dir(__builtins__)").value == [2, False]


def test_an_endless_loop_ends(sandbox: Sandbox):
    assert sandbox.run("while True: pass").ending in ("killed", "timeout")
    assert is_well(sandbox)


def test_an_endless_loop_that_ignores_signals_ends(sandbox: Sandbox):
    code = (
        "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except: pass\nwhile 1: pass"
    )
    assert sandbox.run(code).ending in ("killed", "timeout")
    assert is_well(sandbox)


def test_sleep_ends_at_the_wall_clock_s_limit(sandbox: Sandbox):
    assert sandbox.run("import time; time.sleep(600)").ending == "timeout"
    assert is_well(sandbox)


def test_a_long_computation_in_c_ends(sandbox: Sandbox):
    assert sandbox.run("result = 9 ** 9 ** 9").ending in ("killed", "timeout", "failed")
    assert is_well(sandbox)


@pytest.mark.parametrize("code", ["x = bytearray(10 ** 9)", "x = []\nwhile True: x.append('y' * 10 ** 6)"])
def test_memory_is_bounded(sandbox: Sandbox, code: str):
    outcome = sandbox.run(code)
    assert outcome.ending == "killed" or "MemoryError" in outcome.value
    assert is_well(sandbox)


def test_a_huge_result_is_refused(sandbox: Sandbox):
    outcome = sandbox.run("result = 'x' * 10 ** 7")
    assert (outcome.ending, "10000 bytes" in outcome.value) == ("killed", True)
    assert is_well(sandbox)


def test_what_is_printed_goes_nowhere(sandbox: Sandbox):
    assert sandbox.run("print('x' * 10 ** 6); result = 1").value == 1
    assert sandbox.run('import os; os.write(1, b\'{"ending": "done"}\\n\'); result = 2').value == 2


def test_no_process_can_be_started(sandbox: Sandbox):
    assert "PermissionError" in sandbox.run("import os\nwhile True: os.fork()").value
    assert "PermissionError" in sandbox.run("import os; os.execv('/bin/true', ['true'])").value
    assert "RuntimeError" in sandbox.run("import _thread; _thread.start_new_thread(print, ())").value
    assert is_well(sandbox)


def test_no_other_process_can_be_harmed(sandbox: Sandbox):
    for target in (os.getpid(), 0, -1):
        assert "PermissionError" in sandbox.run(f"import os; os.kill({target}, 9)").value
    assert is_well(sandbox)


def test_there_is_no_network(sandbox: Sandbox):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        outcome = sandbox.run(f"import socket; socket.create_connection(('127.0.0.1', {port})); result = 'connected'")
    assert outcome.ending == "failed"
    assert "PermissionError" in sandbox.run("import socket; socket.socket()").value
    assert "PermissionError" in sandbox.run("import socket; socket.socket(socket.AF_UNIX)").value
    assert "PermissionError" in sandbox.run(SYSTEM_CALL).value


SYSTEM_CALL = """
import os, ctypes
libc = ctypes.CDLL(None, use_errno=True)
number = {'x86_64': 41, 'aarch64': 198}[os.uname().machine]  # socket
if libc.syscall(number, 2, 1, 0) == -1:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def test_no_file_can_be_read_or_written(sandbox: Sandbox, tmp_path: Path):
    (tmp_path / "secret").write_text("a key")
    for code in (
        f"result = open({str(tmp_path / 'secret')!r}).read()",
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"import os; os.unlink({str(tmp_path / 'secret')!r})",
        f"import os; os.truncate({str(tmp_path / 'secret')!r}, 0)",
        "import os; result = os.listdir('/')",
    ):
        assert "PermissionError" in sandbox.run(code).value
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]
    assert (tmp_path / "secret").read_text() == "a key"


def test_no_limit_can_be_raised(sandbox: Sandbox):
    raised = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))"
    assert "Error" in sandbox.run(raised).value


def test_the_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    with Sandbox("tests.recipes.hostile_code:execute", LIMITS) as another:
        assert "tml-secret" not in str(another.run("import os; result = dict(os.environ)").value)


def test_many_jobs_come_back_in_order(sandbox: Sandbox):
    assert [sandbox.run(f"result = {n}").value for n in range(50)] == list(range(50))


def test_a_function_that_does_not_exist_is_told_at_once():
    with pytest.raises(SandboxUnavailable, match="did not start"):
        Sandbox("tests.recipes.hostile_code:nothing")
