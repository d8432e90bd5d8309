"""The tree of errors that callers can meet.

OpenRLError
├── InvalidRequest      the caller sent something wrong; the message names value and bound
│   └── PayloadTooLarge the body is over the limit
├── Unauthorized        no credential, or one that is not valid
│   └── InvalidToken    a token that was forged or has expired: exchange the key for another
├── NotFound            no such thing, or it belongs to another tenant
├── QuotaExceeded       allowed, but not now: slow down
├── SessionEnded        the session was finished or expired
├── RequestTimeout      a long poll ended without an answer: ask again
├── Unavailable         the server cannot do this at the moment (starting, draining, disk full)
│   └── WorkerLost      the worker that ran the request went away
└── RequestFailed       an accepted request ran and failed; stored as its result, never an HTTP error
"""

from typing import Literal

ErrorCategory = Literal["user", "server", "unknown"]


class OpenRLError(Exception):
    """Base of all errors raised on purpose; `str(error)` is fit for the caller's eyes."""


class InvalidRequest(OpenRLError):
    """The caller sent something wrong; names the value and the bound."""


class PayloadTooLarge(InvalidRequest):
    """The body is larger than the server accepts."""


class Unauthorized(OpenRLError):
    """No credential, or one that is not valid."""


class InvalidToken(Unauthorized):
    """A token that was forged or has expired; clients exchange their key for another."""


class NotFound(OpenRLError):
    """No such thing, or it belongs to another tenant: the two are not told apart."""


class QuotaExceeded(OpenRLError):
    """Allowed, but not now."""


class SessionEnded(OpenRLError):
    """The session was finished by its client or expired."""


class RequestTimeout(OpenRLError):
    """A long poll ended before its result was there."""


class Unavailable(OpenRLError):
    """The server cannot do this at the moment."""


class WorkerLost(Unavailable):
    """The worker that ran the request went away."""


class RequestFailed(OpenRLError):
    """An accepted request ran and failed; becomes the result of its future."""

    def __init__(self, message: str, category: ErrorCategory) -> None:
        super().__init__(message)
        self.category: ErrorCategory = category
