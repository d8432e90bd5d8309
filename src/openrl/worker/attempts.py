"""Turns whatever goes wrong while one request runs into that request's own failure."""

import re
from collections.abc import Callable
from typing import TypeVar

from openrl.errors import InvalidRequest, NotFound, OpenRLError, RequestFailed
from openrl.rpc.messages import WorkItem
from openrl.telemetry.logs import get_logger, request_fields

T = TypeVar("T")
_MESSAGE_CHARS = 300
_PATH = re.compile(r"(?:\w+://|/)[^\s'\"/]+/[^\s'\"]*")
log = get_logger(__name__)


def attempt(action: Callable[[], T], *, what: str, item: WorkItem | None = None) -> T | RequestFailed:
    """The value of `action`, or why it failed; `what` names it in the log, `item` the request if it is one's own.

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
        fields = {} if item is None else request_fields(item)
        log.error("request failed unexpectedly", what=what, exc_info=error, **fields)
        return RequestFailed(f"{what} failed: {type(error).__name__}: {_words(error)}"[:_MESSAGE_CHARS], "server")


def _words(error: Exception) -> str:
    """What an error says, without the names of files: they are the operator's."""
    if isinstance(error, OSError):
        return error.strerror or "the machine refused"
    lines = str(error).strip().splitlines()
    return _PATH.sub("<path>", lines[0]) if lines else ""
