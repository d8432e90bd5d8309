"""Turns whatever goes wrong while one request runs into that request's own failure."""

from collections.abc import Callable
from typing import TypeVar

from openrl.errors import InvalidRequest, NotFound, OpenRLError, RequestFailed
from openrl.telemetry.logs import get_logger

T = TypeVar("T")
_MESSAGE_CHARS = 300
log = get_logger(__name__)


def attempt(action: Callable[[], T], *, what: str) -> T | RequestFailed:
    """The value of `action`, or why it failed; `what` names it in the log.

    Errors raised on purpose keep their message and their side (user or server). Anything else is
    our bug or the machine's trouble: the log gets the trace, the caller one short line.
    """
    try:
        return action()
    except RequestFailed as failure:
        return failure
    except OpenRLError as error:
        return RequestFailed(str(error), "user" if isinstance(error, InvalidRequest | NotFound) else "server")
    except Exception as error:  # the worker loop: one request fails, its neighbours go on
        log.error("request failed unexpectedly", what=what, exc_info=error)
        return RequestFailed(f"{what} failed: {type(error).__name__}: {error}"[:_MESSAGE_CHARS], "server")
