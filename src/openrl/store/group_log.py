"""SQL with which a group of writes on PostgreSQL ends: it is noted, and the other processes are told.

A connection that breaks during COMMIT leaves open whether the group was committed. The note, a row of its writer
with the number of its last group, tells: it was written in the same transaction. So a group takes effect once,
whatever is in it. (The server's own `pg_xact_status` could not: after a crash it gives a lost number out again.)
"""

from collections.abc import Sequence

from sqlalchemy import Connection, select, text

from openrl.store.group import Committed
from openrl.store.notices import CHANNEL, payloads_of
from openrl.store.schema import writers

_END = text(
    "WITH note AS (INSERT INTO writers (writer_id, last_group, seen_at) VALUES (:writer_id, :number, now()) "
    "ON CONFLICT (writer_id) DO UPDATE SET last_group = excluded.last_group, seen_at = excluded.seen_at) "
    "SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload"
)
_TELL = text("SELECT pg_notify(:channel, :payload)")
_FORGET = text("DELETE FROM writers WHERE seen_at < now() - interval '7 days'")


class GroupLog:
    """The notes of one writer."""

    def __init__(self, writer_id: str) -> None:
        self.writer_id = writer_id

    def end_group(self, connection: Connection, number: int, committed: Committed) -> None:
        """Note the group and tell the others, once its transaction commits."""
        payloads = payloads_of(self.writer_id, number, committed.arrived, committed.ended)
        values = {"writer_id": self.writer_id, "number": number, "channel": CHANNEL, "payloads": payloads}
        connection.execute(_END, values)

    def was_committed(self, connection: Connection, number: int) -> bool:
        """Whether the group was; exact while the write lock is held."""
        last = connection.scalar(select(writers.c.last_group).where(writers.c.writer_id == self.writer_id))
        return last is not None and last >= number


def tell(connection: Connection, payloads: Sequence[str]) -> None:
    """Send payloads to all processes that listen."""
    connection.execute(_TELL, [{"channel": CHANNEL, "payload": payload} for payload in payloads])


def forget_old_writers(connection: Connection) -> None:
    """Drop the notes of processes that ended long ago."""
    connection.execute(_FORGET)
