"""A vLLM server is one worker's at a time."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openrl.errors import Unavailable
from openrl.sampling.vllm_claim import ServerClaim

FIRST, SECOND, THIRD = (f"http://vllm-{number}:8000" for number in range(3))
HOLD = """
import sys, time
from pathlib import Path
from openrl.sampling.vllm_claim import ServerClaim
ServerClaim((sys.argv[2],), Path(sys.argv[1]), "killed")
print("held", flush=True)
time.sleep(600)
"""


def test_the_second_worker_is_told_which_servers_are_taken_and_by_whom(tmp_path: Path):
    claim = ServerClaim((FIRST, SECOND), tmp_path, "worker-0")
    with pytest.raises(Unavailable) as refused:
        ServerClaim((f"{SECOND}/", THIRD), tmp_path, "worker-1")
    assert f"{SECOND} (worker 'worker-0')" in str(refused.value)
    assert FIRST not in str(refused.value)
    assert THIRD not in str(refused.value)
    other = ServerClaim((THIRD,), tmp_path, "worker-1")  # the refused one has left it
    claim.close()
    again = ServerClaim((FIRST, SECOND), tmp_path, "worker-2")
    again.close()
    other.close()


def test_a_server_that_is_named_twice_is_claimed_once(tmp_path: Path):
    ServerClaim((FIRST, f"{FIRST}/"), tmp_path, "worker-0").close()


def test_a_loopback_address_is_another_server_on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = "http://127.0.0.1:8000"
    claim = ServerClaim((url,), tmp_path, "worker-0")
    with pytest.raises(Unavailable):
        ServerClaim((url,), tmp_path, "worker-1")
    monkeypatch.setattr(socket, "gethostname", lambda: "another-pod")
    ServerClaim((url,), tmp_path, "worker-1").close()
    claim.close()


def test_what_a_killed_worker_had_is_free(tmp_path: Path):
    command = (sys.executable, "-c", HOLD, str(tmp_path), FIRST)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match="worker 'killed'"):
            ServerClaim((FIRST,), tmp_path, "worker-0")
        process.kill()
        process.wait()
    ServerClaim((FIRST,), tmp_path, "worker-0").close()
