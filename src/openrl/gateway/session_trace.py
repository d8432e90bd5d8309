"""A session's requests as a Perfetto trace: a track for each run and sampler, a slice for each request.

A slice holds two: how long the request waited, and how long it ran. Requests of one track overlap, and slices on
one track may not, so a track is drawn in as many lanes as it needs; lanes of one track bear the same name.
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence

from openrl.protocol import perfetto_pb2 as pb
from openrl.store.ledger import TracedRequest

_SEQUENCE = 1
_PROCESS = 1
_CLOCKS = (6, 1)  # the clock of timestamps, and the wall clock: here they agree
_NS = 10**9


def build_trace(session_id: str, requests: Sequence[TracedRequest]) -> bytes:
    """The trace of requests in order of their arrival."""
    packets = [_clock_packet(requests), _descriptor(_PROCESS, f"session {session_id}", is_process=True)]
    next_uuid = _PROCESS + 1
    for name, members in _by_track(requests).items():
        lanes = _lanes(members)
        for lane, lane_requests in enumerate(lanes):
            packets.append(_descriptor(next_uuid + lane, name))
            for request in lane_requests:
                packets.extend(_slices(next_uuid + lane, request))
        next_uuid += len(lanes)
    return pb.Trace(packet=packets).SerializeToString()


def _by_track(requests: Iterable[TracedRequest]) -> dict[str, list[TracedRequest]]:
    tracks: dict[str, list[TracedRequest]] = {}
    for request in requests:
        name = f"run {request.run_id}" if request.run_id else f"sampler {request.sampler_id}"
        tracks.setdefault(name, []).append(request)
    return tracks


def _lanes(requests: Iterable[TracedRequest]) -> list[list[TracedRequest]]:
    """Requests shared out so that none overlaps the one before it in its lane."""
    lanes: list[list[TracedRequest]] = []
    ends: list[tuple[float, int]] = []  # a heap: when each lane is free again
    for request in requests:
        if ends and ends[0][0] <= request.created_at:
            lane = heapq.heappop(ends)[1]
        else:
            lane = len(lanes)
            lanes.append([])
        lanes[lane].append(request)
        heapq.heappush(ends, (math.inf if request.finished_at is None else request.finished_at, lane))
    return lanes


def _slices(track: int, request: TracedRequest) -> Iterator[pb.TracePacket]:
    yield _begin(track, request.created_at, request.kind, _annotations(request))
    yield _begin(track, request.created_at, "queued")
    if request.finished_at is None:
        return  # shown as not ended
    started_at = max(request.created_at, request.finished_at - request.wall_s)
    yield _end(track, started_at)
    yield _begin(track, started_at, "running")
    yield _end(track, request.finished_at)
    yield _end(track, request.finished_at)


def _annotations(request: TracedRequest) -> list[pb.DebugAnnotation]:
    counts = {
        "seq_id": request.seq_id,
        "tokens": request.num_tokens,
        "sampled_tokens": request.num_sampled_tokens,
        "cached_tokens": request.num_cached_tokens,
    }
    found = [pb.DebugAnnotation(name=name, int_value=value) for name, value in counts.items()]
    if request.finished_at is not None:
        queued_s = max(request.finished_at - request.wall_s - request.created_at, 0.0)
        times = {"queued_s": queued_s, "running_s": request.wall_s, "device_s": request.busy_s}
        found += [pb.DebugAnnotation(name=name, double_value=value) for name, value in times.items()]
    found += [
        pb.DebugAnnotation(name="request_id", string_value=request.request_id),
        pb.DebugAnnotation(name="state", string_value=request.state),
    ]
    return found


def _begin(track: int, at: float, name: str, annotations: Iterable[pb.DebugAnnotation] = ()) -> pb.TracePacket:
    event = pb.TrackEvent(
        type=pb.TrackEvent.TYPE_SLICE_BEGIN,
        track_uuid=track,
        name=name,
        categories=["request"],
        debug_annotations=annotations,
    )
    return pb.TracePacket(timestamp=int(at * _NS), trusted_packet_sequence_id=_SEQUENCE, track_event=event)


def _end(track: int, at: float) -> pb.TracePacket:
    event = pb.TrackEvent(type=pb.TrackEvent.TYPE_SLICE_END, track_uuid=track)
    return pb.TracePacket(timestamp=int(at * _NS), trusted_packet_sequence_id=_SEQUENCE, track_event=event)


def _descriptor(uuid: int, name: str, *, is_process: bool = False) -> pb.TracePacket:
    if is_process:
        process = pb.ProcessDescriptor(pid=_PROCESS, process_name=name)
        track = pb.TrackDescriptor(uuid=uuid, name=name, process=process)
    else:
        track = pb.TrackDescriptor(uuid=uuid, name=name, parent_uuid=_PROCESS)
    return pb.TracePacket(trusted_packet_sequence_id=_SEQUENCE, track_descriptor=track)


def _clock_packet(requests: Sequence[TracedRequest]) -> pb.TracePacket:
    """Clients show the time of day by it."""
    start = int(requests[0].created_at * _NS) if requests else 0
    clocks = [pb.ClockSnapshot.Clock(clock_id=clock, timestamp=start) for clock in _CLOCKS]
    snapshot = pb.ClockSnapshot(clocks=clocks)
    return pb.TracePacket(timestamp=start, trusted_packet_sequence_id=_SEQUENCE, clock_snapshot=snapshot)
