"""Blobs in an object store: what only they do, and what trouble on the way to the store does to them."""

import http.server
import os
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from openrl.config import StoreConfig
from openrl.errors import InvalidRequest, NotFound, Unavailable
from openrl.store import remote, remote_objects, remote_packs
from openrl.store.connect import connect
from openrl.store.pack_cache import PackCache
from openrl.store.remote import Patience, RemoteStore
from openrl.store.remote_blobs import RemoteBlobs
from tests.chaos_proxy import ChaosProxy
from tests.s3_server import ENVIRONMENT, Bucket, S3Server

PATIENCE = Patience(connect_s=1.0, request_s=1.0, retry_s=2.0)
FILES = {"adapter_model.safetensors": b"w" * 5000, "nested/config.json": b"{}"}


def nothing_in_use(packs: Sequence[str]) -> set[str]:
    return set()


@contextmanager
def opened(config: StoreConfig, root: Path, patience: Patience = PATIENCE, **options: Any) -> Generator[RemoteBlobs]:
    blobs = RemoteBlobs(connect(config, patience), root / "cache", 2**20, **options)
    yield blobs
    blobs.close()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[ChaosProxy]:
    made = ChaosProxy(s3_server.host, s3_server.port)
    made.start()
    yield made
    made.stop()


class _Refusal(http.server.BaseHTTPRequestHandler):
    """As S3 answers a wrong signature: with the key's id, and here with more."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        told = "".join(f"<A>{value}</A>" for value in ENVIRONMENT.values())
        body = f"<Error><Code>SignatureDoesNotMatch</Code>{told}</Error>".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusal)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def through(proxy: ChaosProxy, bucket: Bucket) -> StoreConfig:
    return bucket.config(f"http://127.0.0.1:{proxy.port}")


# -- payloads
def test_what_was_written_or_read_lately_can_be_peeked_at(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path) as writer, opened(bucket.config(), tmp_path) as reader:
        refs = writer.put_payloads([b"one", b"two"])
        assert writer.peek_payload(refs[1], 100) == b"two"
        assert reader.peek_payload(refs[1], 100) is None
        assert reader.get_payload(refs[1]) == b"two"
        assert reader.peek_payload(refs[1], 100) == b"two"


def test_the_memory_of_recent_payloads_is_bounded():
    recent = PackCache(100)
    for pack in range(10):
        recent.keep(f"p{pack}", 5, b"0123456789" * 2)
    assert [recent.find(f"p{pack}", 6, 3) for pack in range(10)] == [None] * 5 + [b"123"] * 5
    recent.keep("big", 0, b"x" * 51)
    assert recent.find("big", 0, 1) is None
    assert recent.find("p9", 4, 3) is None
    assert recent.find("p9", 24, 1) == b"9"
    assert recent.find("p9", 24, 2) is None
    recent.forget(["p8", "p1"])
    recent.find("p5", 5, 0)
    recent.keep("more", 0, b"x" * 40)
    assert [recent.find(f"p{pack}", 5, 0) for pack in range(5, 10)] == [b"", None, b"", None, b""]


def test_payloads_that_were_put_together_are_read_together(bucket: Bucket, tmp_path: Path):
    payloads = [bytes([n]) * 1000 for n in range(20)]
    with opened(bucket.config(), tmp_path) as writer, opened(bucket.config(), tmp_path) as reader:
        refs = writer.put_payloads(payloads)
        assert reader.get_payload(refs[3]) == payloads[3]
        assert [reader.peek_payload(ref, 1000) for ref in refs] == [None] * 3 + payloads[3:]


def test_a_payload_longer_than_one_request_comes_back(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_packs, "PART_BYTES", 1000)
    monkeypatch.setattr(remote_packs, "READ_AHEAD", 1)
    payloads = [b"before", os.urandom(2500), os.urandom(2000), b""]
    with opened(bucket.config(), tmp_path) as writer, opened(bucket.config(), tmp_path) as reader:
        assert [reader.get_payload(ref) for ref in writer.put_payloads(payloads)] == payloads


def test_a_ref_past_the_end_of_its_pack_is_not_found(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path) as blobs:
        pack = blobs.put_payloads([b"12345"])[0].split(":")[0]
        assert blobs.get_payload(f"{pack}:4:1") == b"5"
        for beyond in (f"{pack}:4:2", f"{pack}:5:1", f"{pack}:0:999999999999999999"):
            with pytest.raises(NotFound):
                blobs.get_payload(beyond)


def test_a_pack_is_kept_for_a_while_by_the_clock_of_the_store(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened(bucket.config(), tmp_path, grace_s=300.0) as blobs:
        ref = blobs.put_payloads([b"not committed yet"])[0]
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 86400.0)  # our own clock has jumped
        assert blobs.sweep_packs(nothing_in_use) == 0
        assert blobs.get_payload(ref) == b"not committed yet"


# -- objects
def test_a_write_that_is_cut_short_leaves_the_old_object_and_its_litter_is_swept(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened(bucket.config(), tmp_path, grace_s=0.0, litter_grace_s=0.0) as blobs:
        blobs.put_object("k", {"a": b"old"})
        whole = bucket.everything()
        put = RemoteStore.put

        def put_until_the_end(self: RemoteStore, path: str, data: bytes) -> None:
            if path.startswith("names/"):
                raise Unavailable("killed here")
            put(self, path, data)

        monkeypatch.setattr(RemoteStore, "put", put_until_the_end)
        with pytest.raises(Unavailable):
            blobs.put_object("k", {"a": b"new", "b": b"new"})
        with pytest.raises(Unavailable):
            blobs.put_object("fresh", {"a": b"new"})
        monkeypatch.setattr(RemoteStore, "put", put)
        assert blobs.get_object("k") == {"a": b"old"}
        assert blobs.list_objects("") == {"k": pytest.approx(time.time(), abs=60)}
        assert len(bucket.everything()) == len(whole) + 3
        assert blobs.sweep_packs(nothing_in_use) == 9
        assert [key for key in bucket.everything() if not key.endswith("/clock")] == whole
        assert blobs.get_object("k") == {"a": b"old"}


def test_of_writers_at_the_same_time_the_last_one_wins_and_all_is_whole(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path, grace_s=0.0, litter_grace_s=0.0) as blobs:

        def write(n: int) -> None:
            blobs.put_object("k", {name: str(n).encode() for name in ("a", "b", f"only-{n}")})

        writers = [threading.Thread(target=write, args=(n,)) for n in range(6)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        files = blobs.get_object("k")
        (winner,) = set(files.values())
        assert set(files) == {"a", "b", f"only-{winner.decode()}"}
        blobs.sweep_packs(nothing_in_use)
        assert len([key for key in bucket.everything() if "/files/" in key]) == 3
        assert blobs.get_object("k") == files


def test_what_a_write_has_not_named_yet_is_kept_for_its_grace(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path, litter_grace_s=3600.0) as blobs:
        blobs.put_object("k", {"a": b"1"})
        (stored,) = [key for key in bucket.everything() if "/files/" in key]
        started = stored.replace(stored.split("/")[-2], "f" * 32)
        bucket.overwrite(started, b"begun")
        assert blobs.sweep_packs(nothing_in_use) == 0
        assert started in bucket.everything()


def test_objects_larger_than_one_request_come_back(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_objects, "PART_BYTES", 1000)
    files = {"large": os.urandom(5500), "exact": os.urandom(2000), "empty": b""}
    with opened(bucket.config(), tmp_path) as blobs:
        blobs.put_object("k", files)
        assert blobs.get_object("k") == files
        assert {name: Path(blobs.open_path("k", name)).read_bytes() for name in files} == files


def test_readers_meet_the_old_or_the_new_object_never_a_mixture(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path) as blobs:
        blobs.put_object("k", {"a": b"0", "b": b"0"})
        is_over = threading.Event()
        seen: list[dict[str, bytes]] = []

        def read() -> None:
            while not is_over.is_set():
                seen.append(blobs.get_object("k"))

        reader = threading.Thread(target=read)
        reader.start()
        for n in range(10):
            blobs.put_object("k", {"a": str(n).encode(), "b": str(n).encode()})
        is_over.set()
        reader.join()
        assert seen
        assert all(files["a"] == files["b"] for files in seen)
        assert len(bucket.everything()) == 3


def test_a_file_has_a_local_path_and_a_replaced_one_another(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path) as blobs:
        blobs.put_object("k", {"d/a": b"bytes"})
        path = blobs.open_path("k", "d/a")
        assert Path(path).read_bytes() == b"bytes"
        assert blobs.open_path("k", "d/a") == path
        blobs.put_object("k", {"d/a": b"other"})
        assert Path(blobs.open_path("k", "d/a")).read_bytes() == b"other"
        for key, name in (("k", "b"), ("k", "d"), ("other", "a")):
            with pytest.raises(NotFound):
                blobs.open_path(key, name)
        with pytest.raises(InvalidRequest):
            blobs.open_path("k", "../a")


# -- trouble
def test_a_store_that_is_away_for_a_moment_costs_only_time(bucket: Bucket, tmp_path: Path, proxy: ChaosProxy):
    with opened(through(proxy, bucket), tmp_path) as blobs:
        blobs.put_object("k", FILES)
        proxy.set("cut")
        threading.Timer(0.5, proxy.set, ["pass"]).start()
        (ref,) = blobs.put_payloads([b"payload"])
        assert blobs.get_payload(ref) == b"payload"
        assert blobs.get_object("k") == FILES


@pytest.mark.parametrize("mode", ["cut", "hang"])
def test_a_store_that_stays_away_is_an_error_and_works_again_without_help(
    bucket: Bucket, tmp_path: Path, proxy: ChaosProxy, mode: Any
):
    with opened(through(proxy, bucket), tmp_path) as blobs:
        blobs.put_object("k", FILES)
        (ref,) = blobs.put_payloads([b"before"])
        proxy.set(mode)
        for call in (
            lambda: blobs.put_payloads([b"lost"]),
            lambda: blobs.put_object("k", {"a": b"lost"}),
            lambda: blobs.list_object("k"),
        ):
            with pytest.raises(Unavailable, match=r"cannot (write|read) (packs|names)/.*: (no answer|the connection)"):
                call()
        proxy.set("pass")
        assert blobs.get_object("k") == FILES
        assert blobs.get_payload(ref) == b"before"
        assert blobs.get_payload(blobs.put_payloads([b"after"])[0]) == b"after"


@pytest.mark.parametrize("mode", ["cut", "hang"])
@pytest.mark.parametrize("part_bytes", [16 * 2**20, 5 * 2**20], ids=["one request", "many parts"])
def test_a_write_that_fails_in_the_middle_leaves_what_was_there(
    bucket: Bucket, tmp_path: Path, proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch, mode: Any, part_bytes: int
):
    monkeypatch.setattr(remote, "PART_BYTES", part_bytes)
    large = os.urandom(12 * 2**20)
    with opened(through(proxy, bucket), tmp_path, litter_grace_s=0.0, grace_s=0.0) as blobs:
        blobs.put_object("k", FILES)
        before = bucket.everything()
        proxy.set(mode, after_bytes=7 * 2**20)
        with pytest.raises(Unavailable):
            blobs.put_payloads([large])
        proxy.set("pass")
        proxy.set(mode, after_bytes=7 * 2**20)
        with pytest.raises(Unavailable):
            blobs.put_object("k", {"large": large})
        proxy.set("pass")
        assert [key for key in bucket.everything() if "/packs/" not in key] == before
        assert blobs.get_object("k") == FILES
        assert blobs.put_object("k", {"large": large}) == len(large)
        assert blobs.get_object("k") == {"large": large}


def test_a_write_of_an_object_waits_out_a_short_trouble(bucket: Bucket, tmp_path: Path, proxy: ChaosProxy):
    with opened(through(proxy, bucket), tmp_path) as blobs:
        proxy.set("cut", after_bytes=3000)
        threading.Timer(0.7, proxy.set, ["pass"]).start()
        blobs.put_object("k", FILES)
        assert blobs.get_object("k") == FILES


def test_an_answer_shorter_than_it_should_be_is_an_error(bucket: Bucket, tmp_path: Path):
    with opened(bucket.config(), tmp_path) as blobs:
        blobs.put_object("k", FILES)
        (stored,) = [key for key in bucket.everything() if "adapter_model" in key]
        bucket.overwrite(stored, b"short")
        with pytest.raises(Unavailable, match="shorter than"):
            blobs.get_object("k")
        with pytest.raises(Unavailable, match="shorter than"):
            blobs.open_path("k", "adapter_model.safetensors")
        bucket.overwrite(next(key for key in bucket.everything() if "/names/" in key), b'{"ver')
        with pytest.raises(Unavailable, match="damaged"):
            blobs.list_object("k")


def test_a_slow_store_is_only_slow(bucket: Bucket, tmp_path: Path, proxy: ChaosProxy):
    with opened(through(proxy, bucket), tmp_path) as blobs:
        proxy.set("delay", 0.05)
        blobs.put_object("k", FILES)
        assert blobs.get_object("k") == FILES


def test_the_secrets_that_a_refusal_repeats_are_in_no_message_and_no_log(
    bucket: Bucket, tmp_path: Path, refusing_server: str
):
    with (
        structlog.testing.capture_logs() as logged,
        opened(bucket.config(refusing_server), tmp_path) as blobs,
        pytest.raises(Unavailable, match=r"cannot write packs/.* it answered 403 SignatureDoesNotMatch") as caught,
    ):
        blobs.put_payloads([b"lost"])
    said = f"{''.join(traceback.format_exception(caught.value))} {logged}"
    assert all(ENVIRONMENT[name] not in said for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"))


def test_a_bucket_that_is_not_there_is_trouble_and_no_missing_object(bucket: Bucket, tmp_path: Path):
    config = bucket.config().model_copy(update={"blobs_url": "s3://no-such-bucket/here"})
    with opened(config, tmp_path) as blobs:
        for call in (
            blobs.check,
            lambda: blobs.put_payloads([b"lost"]),
            lambda: blobs.get_payload(f"{'0' * 32}:0:5"),
            lambda: blobs.get_object("k"),
            lambda: blobs.list_objects("k/"),
            lambda: blobs.put_object("k", FILES),
        ):
            with pytest.raises(Unavailable, match="it answered 404 NoSuchBucket"):
                call()
