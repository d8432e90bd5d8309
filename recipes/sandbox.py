"""Runs what a model wrote in a process that can compute, and nothing else.

`Sandbox("package.module:function")` starts one helper process that imports the function and calls `prepare()` of its
module, if it has one. Each `run(job)` forks a child of it, so jobs share nothing, and none waits for an interpreter to
start. Before the child meets what the model wrote it gives up, for good:

* system calls: a seccomp filter allows only reading and writing of what is open (a pipe), memory, clocks and exit.
  There is no socket, no file to open, no process or thread to start, no signal to send: these fail with EPERM.
* CPU time, memory, and the size of its result, by resource limits; the helper kills it after `timeout_s` of wall time.

The helper has an empty environment (no key to read). Neither root nor namespaces are needed, only Linux on x86-64 or
arm64; elsewhere `Sandbox` refuses. The kernel is the boundary: a hole in its allowed system calls would be one here.
What comes back is data of the child's making: compare it outside, never let the child decide what it earned.
"""

import contextlib
import importlib
import json
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.system_calls import is_supported, keep_only_computing

Ending = Literal["done", "failed", "timeout", "killed"]
ROOT = Path(__file__).parents[1]
RESULT_FD = 3


class SandboxUnavailable(Exception):
    """This machine has no boundary to run untrusted code behind, or the helper process did not start."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use."""

    timeout_s: float = 2.0
    """Wall time."""
    cpu_s: int = 1
    memory_bytes: int = 256 * 2**20
    """Of address space, beyond what the helper has."""
    result_bytes: int = 65_536
    """Of the result as JSON."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `value` is its result if done, else the reason."""

    ending: Ending
    value: Any


class Sandbox:
    """A helper process that runs one job at a time; safe to use from several threads."""

    def __init__(self, function: str, limits: Limits | None = None) -> None:
        if not is_supported():
            raise SandboxUnavailable(
                f"{platform.system()} on {platform.machine()}: it must be Linux on x86-64 or arm64"
            )
        self._lock = threading.Lock()
        paths = [str(ROOT), *(each for each in sys.path if each)]
        command = (sys.executable, "-c", "from recipes.sandbox import serve; serve()")
        self._helper = subprocess.Popen(
            (*command, function, json.dumps(asdict(limits or Limits()))),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env={"PYTHONPATH": os.pathsep.join(paths)},
            text=True, start_new_session=True,
        )  # fmt: skip
        if self._reply() != {"ready": True}:
            self.close()
            raise SandboxUnavailable(f"the helper for {function} did not start; its reason is above")

    def run(self, job: Any) -> Outcome:
        """The function's result for the job, which is JSON too."""
        with self._lock:
            assert self._helper.stdin is not None
            self._helper.stdin.write(json.dumps(job) + "\n")
            self._helper.stdin.flush()
            reply = self._reply()
        if reply is None:
            raise SandboxUnavailable("the helper process has ended")
        return Outcome(reply["ending"], reply["value"])

    def _reply(self) -> Any:
        assert self._helper.stdout is not None
        line = self._helper.stdout.readline()
        return json.loads(line) if line else None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the helper and what it runs."""
        for stream in (self._helper.stdin, self._helper.stdout):
            if stream is not None:
                stream.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._helper.pid, signal.SIGKILL)
        self._helper.wait()


def serve() -> None:
    """The helper: jobs from standard input, one JSON line each; outcomes to standard output."""
    name, limits = sys.argv[1], Limits(**json.loads(sys.argv[2]))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a function that prints disturbs nothing
    module, function_name = name.split(":")
    imported = importlib.import_module(module)
    getattr(imported, "prepare", lambda: None)()
    function = getattr(imported, function_name)
    _check_boundary(limits)
    replies.write('{"ready": true}\n')
    replies.flush()
    for line in sys.stdin:
        outcome = _run_child(function, json.loads(line), limits)
        replies.write(json.dumps(asdict(outcome)) + "\n")
        replies.flush()


def _check_boundary(limits: Limits) -> None:
    """Try the boundary before anything is trusted to it: a kernel may refuse the filter."""

    def open_a_file(_job: Any) -> None:
        os.close(os.open(os.devnull, os.O_RDONLY))

    outcome = _run_child(open_a_file, None, limits)
    if outcome.ending != "failed" or not str(outcome.value).startswith("PermissionError"):
        raise SandboxUnavailable(f"this kernel does not close a process: opening a file ended as {outcome}")


def _run_child(function: Callable[[Any], Any], job: Any, limits: Limits) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(function, job, limits, writing)
    os.close(writing)
    try:
        content, is_late = _read(reading, limits)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if is_late:
        return Outcome("timeout", f"longer than {limits.timeout_s:g} s")
    if len(content) > limits.result_bytes:
        return Outcome("killed", f"a result of more than {limits.result_bytes} bytes")
    try:
        kind, value = json.loads(content)
    except (ValueError, TypeError, RecursionError):
        return Outcome("killed", f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no result")
    return Outcome("done" if kind == "done" else "failed", value)


def _read(reading: int, limits: Limits) -> tuple[bytes, bool]:
    """What the child writes until it ends or has written too much; whether time ran out before."""
    deadline, content = time.monotonic() + limits.timeout_s, b""
    while len(content) <= limits.result_bytes:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return content, True
        part = os.read(reading, 65_536)
        if not part:
            break
        content += part
    return content, False


def _be_child(function: Callable[[Any], Any], job: Any, limits: Limits, writing: int) -> None:
    """Never returns: it would go on as the helper."""
    try:
        _confine(limits, writing)
        try:
            reply = ("done", function(job))
        except Exception as error:  # noqa: BLE001  # whatever the model wrote may raise whatever it likes
            reply = ("failed", f"{type(error).__name__}: {error}"[:500])
        content = memoryview(json.dumps(reply).encode())
        while content:
            content = content[os.write(RESULT_FD, content[:65_536]) :]
    finally:
        os._exit(0)


def _confine(limits: Limits, writing: int) -> None:
    """Leaves the pipe, as RESULT_FD, a null device, limits, and the system calls that compute."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    if writing != RESULT_FD:
        os.dup2(writing, RESULT_FD)
    os.closerange(RESULT_FD + 1, os.sysconf("SC_OPEN_MAX"))
    for kind, value in (
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_AS, used + limits.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, RESULT_FD + 1),
    ):
        resource.setrlimit(kind, (value, value))
    keep_only_computing()
