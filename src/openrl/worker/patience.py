"""Waits while the store cannot be read or written."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from openrl.errors import Unavailable
from openrl.telemetry.logs import get_logger

T = TypeVar("T")
WRITING_S = (0.1, 0.5, 1.0, 2.0, 5.0, *[10.0] * 60)  # ten minutes
SAVING_S = WRITING_S[:10]  # a minute
_READING_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 10.0)  # an object store tries for a minute each time
log = get_logger(__name__)


def write_patiently(write: Callable[[], T], sleep: Callable[[float], None], waits_s: Sequence[float] = WRITING_S) -> T:
    """What `write` returns, tried again while that fails; raises its error when that lasts longer than the waits."""
    for wait_s in waits_s:
        try:
            return write()
        except (OSError, Unavailable) as error:
            log.warning("cannot write to the store; trying again", error=str(error), wait_s=wait_s)
            sleep(wait_s)
    return write()


def read_patiently(read: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """What `read` returns, tried again while the store is away: a request that was taken does not fail over that."""
    for wait_s in _READING_S:
        try:
            return read()
        except Unavailable as error:
            log.warning("cannot read from the store; trying again", error=str(error), wait_s=wait_s)
            sleep(wait_s)
    return read()
