"""Session traces, read by Perfetto's own message classes."""

import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import httpx
import pytest
import tinker
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto
from tinker import types

from tests.contracts.loops import STEP, TEXT, backward, batch, new_run, prompt_of
from tests.contracts.raw_api import RawApi
from tests.live_server import LiveServer
from tests.sdk.tinker_cli import TinkerCli

BEGIN, END = perfetto.TrackEvent.TYPE_SLICE_BEGIN, perfetto.TrackEvent.TYPE_SLICE_END
Slice = tuple[str, int, int, dict[str, object]]  # name, start, end, annotations


@pytest.fixture(scope="module")
def work(server: LiveServer) -> tuple[str, str, str]:
    """Ids of a session, its run and its sampler, after two steps and three samples at once."""
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        run = new_run(service)
        for _ in range(2):
            backward(run, batch(1))
            run.optim_step(STEP).result()
        sampler = service.create_sampling_client(base_model="tiny").result()
        params = types.SamplingParams(max_tokens=4, stop=[])
        for future in [sampler.sample(prompt_of(TEXT), num_samples=1, sampling_params=params) for _ in range(3)]:
            future.result()
        session_id = run.model_id.partition(":")[0]
        found = tinker.RestClient(base_url=server.url, api_key=server.key).get_session(session_id).result()
        return session_id, run.model_id, found.sampler_ids[0]


def slices_by_track(content: bytes) -> dict[str, list[Slice]]:
    """Outer slices by the name of their track; asserts that slices of a track nest."""
    trace = perfetto.Trace.FromString(content)
    names: dict[int, str] = {}
    open_slices: defaultdict[int, list[Slice]] = defaultdict(list)
    found: defaultdict[str, list[Slice]] = defaultdict(list)
    inner: Counter[str] = Counter()
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            names[packet.track_descriptor.uuid] = packet.track_descriptor.name
        elif packet.HasField("track_event"):
            event = packet.track_event
            stack = open_slices[event.track_uuid]
            if event.type == BEGIN:
                notes = {note.name: getattr(note, note.WhichOneof("value")) for note in event.debug_annotations}
                stack.append((event.name, packet.timestamp, 0, notes))
            else:
                assert event.type == END
                name, start, _, notes = stack.pop()
                assert start <= packet.timestamp
                if stack:
                    inner[name] += 1
                else:
                    found[names[event.track_uuid]].append((name, start, packet.timestamp, notes))
    assert not any(open_slices.values())
    num_outer = sum(map(len, found.values()))
    assert (inner["queued"], inner["running"]) == (num_outer, num_outer)
    return found


@pytest.mark.sdk("RestClient.export_session_trace")
def test_a_trace_shows_every_request_of_a_session(
    rest: tinker.RestClient, bob_rest: tinker.RestClient, work: tuple[str, str, str]
):
    session_id, run_id, sampler_id = work
    url = rest.export_session_trace(session_id).result()
    with urllib.request.urlopen(url) as response:
        tracks = slices_by_track(response.read())
    assert set(tracks) == {f"run {run_id}", f"sampler {sampler_id}"}
    trained = sorted(tracks[f"run {run_id}"], key=lambda each: each[1])
    assert [name for name, *_ in trained] == ["create_model", *["forward_backward", "optim_step"] * 2]
    assert [notes["seq_id"] for *_, notes in trained] == list(range(5))
    num_tokens = sum(datum.model_input.length for datum in batch(1))
    assert trained[1][3]["tokens"] == num_tokens
    sampled = tracks[f"sampler {sampler_id}"]
    assert [notes["sampled_tokens"] for *_, notes in sampled] == [4, 4, 4]
    for _, start, end, notes in trained + sampled:
        assert notes["state"] == "done"
        total_s = (end - start) / 1e9
        queued_s, running_s = notes["queued_s"], notes["running_s"]
        assert isinstance(queued_s, float)
        assert isinstance(running_s, float)
        assert queued_s + running_s == pytest.approx(total_s, abs=1e-3)
    assert any(notes["running_s"] for *_, notes in trained)
    with pytest.raises(tinker.NotFoundError):
        bob_rest.export_session_trace(session_id).result()


@pytest.mark.sdk("tinker session export-trace")
def test_the_command_line_exports_a_trace(server: LiveServer, work: tuple[str, str, str], tmp_path: Path):
    cli = TinkerCli(server.url, server.key, tmp_path)
    file = tmp_path / "out.pftrace"
    shown = cli.json("session", "export-trace", work[0], "--output", str(file))
    assert shown["file_size_bytes"] == file.stat().st_size
    assert slices_by_track(file.read_bytes())


def test_a_trace_is_built_again_only_when_there_is_more(raw: RawApi, work: tuple[str, str, str], server: LiveServer):
    def export() -> str:
        answer = raw.http.get(f"sessions/{work[0]}/trace_export").json()
        assert answer["status"] == "ready"
        return answer["url"]

    def modified() -> list[str]:
        (home,) = (server.data_dir / "blobs" / "objects").glob(f"traces*{work[0]}*")
        return [version.name for version in home.iterdir()]

    url = export()
    before = modified()
    export()
    assert modified() == before
    token = url.rpartition("/")[2]
    assert httpx.get(url).status_code == 200
    assert httpx.get(url[:-2]).status_code == 404
    assert httpx.get(f"{server.url}/api/v1/archives/{token}").status_code >= 400


def test_an_empty_session_has_an_empty_trace(raw: RawApi):
    session_id = raw.http.post("create_session", json={}).json()["session_id"]
    answer = raw.http.get(f"sessions/{session_id}/trace_export").json()
    assert slices_by_track(httpx.get(answer["url"]).content) == {}
