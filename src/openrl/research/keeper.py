"""Runs a command and ends with it all that it started, also what left its process group; and when its asker is gone.

    python keeper.py FD COMMAND...

FD is the reading end of a pipe whose other end the asker holds: it closes when the asker dies, however that happens.
Needs nothing but the standard library, so that it starts at once.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PATIENCE_S = 10.0  # between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36
_NOT_FOUND = 127


def main() -> int:
    """The command's exit status, 128 and more for signals."""
    asker, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes our child
    told_read, told_write = os.pipe()

    def tell(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        os.write(told_write, b"x")

    signal.signal(signal.SIGTERM, tell)
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return _NOT_FOUND
    pidfd = os.pidfd_open(child.pid)
    ready, _, _ = select.select((pidfd, asker, told_read), (), ())
    if pidfd not in ready:
        os.killpg(child.pid, signal.SIGTERM)
        select.select((pidfd,), (), (), PATIENCE_S)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    _end_the_rest()
    return 128 - status if status < 0 else status


def _end_the_rest() -> None:
    """All descendants; those of a process that ends become ours, so the loop meets them."""
    while left := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for each in left:
            os.kill(int(each), signal.SIGKILL)  # a child of ours is there until we have waited for it
        while True:
            try:
                number, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if number == 0:
                break
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
