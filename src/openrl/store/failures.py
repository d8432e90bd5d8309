"""What callers are told when the database or the disk fails: that it did, never how."""

from openrl.errors import Unavailable
from openrl.telemetry.logs import get_logger

_log = get_logger(__name__)


def unavailable(what: str, error: Exception) -> Unavailable:
    """The caller's error; the log has the rest, which may name files, hosts, statements and values."""
    cause = getattr(error, "orig", None) or error  # SQLAlchemy's own words quote the statement and its values
    _log.warning("store failed", what=what, kind=type(error).__name__, error=str(cause))
    return Unavailable(f"the store cannot {what} at the moment; try again")
