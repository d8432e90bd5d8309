"""The tree of errors that callers can meet.

OpenRLError
├── InvalidRequest      the caller sent something wrong; the message names value and bound
│   ├── BadValue        one value is outside its bound
│   └── PayloadTooLarge the body is over the limit
├── Unauthorized        no credential, or one that is not valid
│   └── InvalidToken    a token that was forged or has expired: exchange the key for another
├── Forbidden           known who it is, but the role or the project of the credential does not allow it
├── NotFound            no such thing, or it belongs to another tenant
├── QuotaExceeded       allowed, but not now: slow down
├── QuotaReached        more than the tenant or project may have; waiting does not help
├── SessionEnded        the session was finished or expired
├── ResultExpired       a result was kept for a while only
├── RequestTimeout      a long poll ended without an answer: ask again
├── Unavailable         the server cannot do this at the moment (starting, draining, disk full)
│   ├── WorkerLost      the worker that ran the request went away
│   └── LeaseLost       another process leads: what this one writes as leader is refused
└── RequestFailed       an accepted request ran and failed; stored as its result, never an HTTP error
"""

from typing import Literal

ErrorCategory = Literal["user", "server", "unknown"]
ErrorCode = Literal[
    "invalid_request",
    "malformed",
    "missing",
    "unknown_name",
    "not_supported",
    "out_of_range",
    "not_finite",
    "outside_vocabulary",
    "context_exceeded",
    "wrong_dtype",
    "wrong_shape",
    "wrong_kind",
    "name_taken",
    "too_large",
    "too_slow",
    "unauthorized",
    "forbidden",
    "not_found",
    "slow_down",
    "quota_reached",
    "session_ended",
    "expired",
    "not_ready",
    "unavailable",
    "request_failed",
    "internal",
]
"""What clients may rely on; `docs/errors.md` explains each."""
MAX_SHOWN_CHARACTERS = 120
"""Of what a client sent, in a message."""


class OpenRLError(Exception):
    """Base of all errors raised on purpose; `str(error)` is fit for the caller's eyes."""

    code: ErrorCode = "internal"
    value: object = None
    """What was sent, where one value is to blame."""
    bound: str | None = None
    """What it must be."""

    def __init__(
        self, message: str, code: ErrorCode | None = None, *, value: object = None, bound: str | None = None
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.value = value
        self.bound = bound


class InvalidRequest(OpenRLError):
    """The caller sent something wrong; names the value and the bound."""

    code = "invalid_request"


class BadValue(InvalidRequest):
    """One value is outside its bound."""

    def __init__(self, name: str, value: object, bound: str, code: ErrorCode = "out_of_range") -> None:
        """`bound` completes "it must be"."""
        shown = repr(value[:MAX_SHOWN_CHARACTERS]) if isinstance(value, str) else str(value)[:MAX_SHOWN_CHARACTERS]
        super().__init__(f"{name} is {shown}; it must be {bound}", code, value=value, bound=bound)


class PayloadTooLarge(InvalidRequest):
    """The body is larger than the server accepts."""

    code = "too_large"


class Unauthorized(OpenRLError):
    """No credential, or one that is not valid."""

    code = "unauthorized"


class InvalidToken(Unauthorized):
    """A token that was forged or has expired; clients exchange their key for another."""


class Forbidden(OpenRLError):
    """The credential is valid, but its role or its project does not allow this."""

    code = "forbidden"


class NotFound(OpenRLError):
    """No such thing, or it belongs to another tenant: the two are not told apart."""

    code = "not_found"

    @classmethod
    def of(cls, what: str, name: str) -> "NotFound":
        """The one wording of a missing thing: a stranger's must not be told from it."""
        return cls(f"{what} {name[:MAX_SHOWN_CHARACTERS]!r} does not exist", value=name)


class QuotaExceeded(OpenRLError):
    """Allowed, but not now."""

    code = "slow_down"
    retry_after_s: float | None = None
    """When to try again, where that is known."""


class QuotaReached(OpenRLError):
    """More than the tenant or project may have at once; something must go first, or the quota be raised."""

    code = "quota_reached"

    @classmethod
    def of(cls, quota: str, owner: str, used: float, limit: float, added: float) -> "QuotaReached":
        """`added`: what was asked for besides what is used."""
        more = f", {added:,.0f} more asked for" if used < limit else ""
        in_use = f"{used:,.0f} of {limit:,.0f} in use"
        message = f"quota {quota} of {owner} is reached: {in_use}{more}; free some, or have the quota raised"
        return cls(message, value=used + added, bound=f"at most {limit:,.0f}")


class SessionEnded(OpenRLError):
    """The session was finished by its client or expired."""

    code = "session_ended"

    @classmethod
    def of(cls, session_id: str, state: str, reason: str | None, use: str = "") -> "SessionEnded":
        """`use` is what was asked of it."""
        for_use = f" for {use}" if use else ""
        message = f"session {session_id!r} is {state} ({reason}); make a new one{for_use}"
        return cls(message, value=session_id, bound="an active session")

    @classmethod
    def of_run(cls, run_id: str) -> "SessionEnded":
        """A run of a session that is over, or one that was unloaded."""
        message = f"training run {run_id!r} is closed; load its last checkpoint into a new one"
        return cls(message, value=run_id, bound="a training run that is open")


class ResultExpired(OpenRLError):
    """The result was kept for a while only; clients draw a lost sample again."""

    code = "expired"


class RequestTimeout(OpenRLError):
    """A long poll ended before its result was there."""

    code = "not_ready"


class Unavailable(OpenRLError):
    """The server cannot do this at the moment."""

    code = "unavailable"


class WorkerLost(Unavailable):
    """The worker that ran the request went away."""


class LeaseLost(Unavailable):
    """Another process holds the lease under which this one wrote; nothing was changed."""


class RequestFailed(OpenRLError):
    """An accepted request ran and failed; becomes the result of its future."""

    code = "request_failed"

    def __init__(self, message: str, category: ErrorCategory) -> None:
        super().__init__(message)
        self.category: ErrorCategory = category
