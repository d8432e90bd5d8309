"""What a process tells the others with a commit, as the payloads of NOTIFY."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openrl.errors import BadValue
from openrl.store.base import RequestRow
from openrl.store.cluster import Signal

CHANNEL = "openrl"
MAX_PAYLOAD_BYTES = 7900
"""PostgreSQL refuses 8000."""


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that has ended; its row is in the database."""

    request_id: str
    sampler_id: str
    seq_id: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that was committed, or only told."""

    writer_id: str
    group: int = 0  # number of the writer's commit
    has_arrivals: bool = False
    ended: tuple[EndedRequest, ...] = ()
    are_all_in_doubt: bool = False  # more has ended than can be told: every waiter has to look
    has_pruned: bool = False
    signal: Signal | None = None


def payloads_of(writer_id: str, group: int, arrived: Sequence[RequestRow], ended: Sequence[RequestRow]) -> list[str]:
    """Payloads that tell of a commit; none if it concerns nobody."""
    head: dict[str, Any] = {"w": writer_id, "g": group}
    payloads = [_encode({**head, "a": 1})] if arrived else []
    chunks = [{**head, "e": chunk} for chunk in _chunks([_end(row) for row in ended])]
    return payloads + [_encode(chunk if _fits(chunk) else {**head, "e": None}) for chunk in chunks]


def signal_payload(writer_id: str, signal: Signal) -> str:
    """The payload of a signal; raises InvalidRequest for a subject that is too long."""
    payload = {"w": writer_id, "s": [signal.kind, signal.subject]}
    if not _fits(payload):
        raise BadValue("the subject of a signal", signal.subject, f"at most {MAX_PAYLOAD_BYTES} bytes", "too_large")
    return _encode(payload)


def pruned_payload(writer_id: str) -> str:
    """The payload that tells that references were dropped."""
    return _encode({"w": writer_id, "p": 1})


def read_payload(payload: str) -> Notice:
    """What a payload says."""
    fields = json.loads(payload)
    ended = fields.get("e", [])
    return Notice(
        writer_id=fields["w"],
        group=fields.get("g", 0),
        has_arrivals="a" in fields,
        ended=tuple(EndedRequest(*each) for each in ended or ()),
        are_all_in_doubt=ended is None,
        has_pruned="p" in fields,
        signal=Signal(*fields["s"]) if "s" in fields else None,
    )


def _end(row: RequestRow) -> list[Any]:
    return [row.request_id, row.sampler_id, row.seq_id]


def _chunks(ends: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """As few parts as fit into payloads; one that is too large alone is a part of its own."""
    chunk: list[list[Any]] = []
    size = 0
    for end in ends:
        num_bytes = len(_encode(end)) + 1
        if chunk and size + num_bytes > MAX_PAYLOAD_BYTES - 200:
            yield chunk
            chunk, size = [], 0
        chunk.append(end)
        size += num_bytes
    if chunk:
        yield chunk


def _fits(payload: dict[str, Any]) -> bool:
    return len(_encode(payload)) <= MAX_PAYLOAD_BYTES


def _encode(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
