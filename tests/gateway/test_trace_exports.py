"""Traces that take a while to build, and those that cannot be."""

import asyncio
import threading
from pathlib import Path

import pytest

from openrl.errors import Unavailable
from openrl.gateway.session_trace import build_trace
from openrl.gateway.trace_exports import TRACE_FILE, TraceExports
from openrl.protocol import perfetto_pb2 as pb
from openrl.store.blobs import DirectoryBlobs
from openrl.store.ledger import TracedRequest
from openrl.store.memory import MemoryStore
from openrl.store.memory_blobs import MemoryBlobs
from openrl.store.object_keys import trace_key


class SlowBlobs(DirectoryBlobs):
    """Writes objects when it is let to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_write = threading.Event()
        self.num_written = 0
        self.is_full = False

    def put_object(self, key: str, files: dict[str, bytes]) -> int:
        assert self.may_write.wait(10)
        if self.is_full:
            raise Unavailable("the disk is full")
        self.num_written += 1
        return super().put_object(key, files)


@pytest.fixture
def blobs(tmp_path: Path) -> SlowBlobs:
    return SlowBlobs(tmp_path)


async def test_a_trace_is_pending_until_it_is_built_and_built_once(blobs: SlowBlobs):
    exports = TraceExports(MemoryStore(MemoryBlobs()), blobs)
    asked = [await exports.is_ready("alice", "s1", wait_s=0.01) for _ in range(3)]
    assert asked == [False] * 3
    blobs.may_write.set()
    assert await asyncio.gather(*(exports.is_ready("alice", "s1", wait_s=10.0) for _ in range(2))) == [True, True]
    assert await exports.is_ready("alice", "s1", wait_s=0.0)
    assert blobs.num_written == 1
    assert TRACE_FILE in blobs.list_object(trace_key("s1"))
    blobs.close()


async def test_what_failed_is_tried_again_when_asked_again(blobs: SlowBlobs):
    exports = TraceExports(MemoryStore(MemoryBlobs()), blobs)
    blobs.is_full = True
    blobs.may_write.set()
    with pytest.raises(Unavailable, match="full"):
        await exports.is_ready("alice", "s1", wait_s=10.0)
    blobs.is_full = False
    assert await exports.is_ready("alice", "s1", wait_s=10.0)
    blobs.close()


def traced(seq_id: int, created_at: float, finished_at: float | None, wall_s: float = 0.5) -> TracedRequest:
    return TracedRequest(
        f"q{seq_id}", "sample", seq_id, "", "s1:sample:0", "done", created_at, finished_at, wall_s, 0.1, 7, 3, 2
    )


def test_requests_at_once_are_drawn_in_as_many_lanes_as_they_need():
    requests = [
        traced(1, 0.0, 2.0),
        traced(2, 1.0, 3.0),
        traced(3, 2.0, 4.0),
        traced(4, 5.0, None),
        traced(5, 6.0, 7.0),
    ]
    trace = pb.Trace.FromString(build_trace("s1", requests))
    lanes: dict[int, list[int]] = {}
    for packet in trace.packet:
        for note in packet.track_event.debug_annotations:
            if note.name == "seq_id":
                lanes.setdefault(packet.track_event.track_uuid, []).append(note.int_value)
    assert sorted(lanes.values()) == [[1, 3, 5], [2, 4]] or sorted(lanes.values()) == [[1, 3, 4], [2, 5]]
    kinds = [packet.track_event.type for packet in trace.packet if packet.HasField("track_event")]
    num_unended = kinds.count(pb.TrackEvent.TYPE_SLICE_BEGIN) - kinds.count(pb.TrackEvent.TYPE_SLICE_END)
    assert num_unended == 2  # request 4 and its waiting


def test_an_execution_longer_than_the_request_is_cut_at_its_arrival():
    trace = pb.Trace.FromString(build_trace("s1", [traced(1, 10.0, 11.0, wall_s=60.0)]))
    times = [packet.timestamp / 1e9 for packet in trace.packet if packet.HasField("track_event")]
    assert times == [10.0, 10.0, 10.0, 10.0, 11.0, 11.0]
