import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from openrl.errors import InvalidRequest, NotFound, Unavailable
from openrl.store.base import Blobs
from openrl.store.blobs import DirectoryBlobs
from openrl.store.remote_blobs import RemoteBlobs


def nothing_in_use(packs: Sequence[str]) -> set[str]:
    return set()


def all_in_use(packs: Sequence[str]) -> set[str]:
    return set(packs)


def peek_finds_nothing(blobs: Blobs, ref: str) -> bool:
    """A bucket is not asked; the others know at once."""
    try:
        return blobs.peek_payload(ref, 100) is None and isinstance(blobs, RemoteBlobs)
    except NotFound:
        return True


def packs_in(root: Path) -> list[Path]:
    return sorted((root / "packs").iterdir())


# -- payloads, in both kinds
def test_payloads_come_back_by_their_refs(blobs: Blobs):
    payloads = [b"one", b"", bytes(range(256)) * 100]
    refs = blobs.put_payloads(payloads) + blobs.put_payloads([b"two"])
    assert [blobs.get_payload(ref) for ref in refs] == [*payloads, b"two"]
    assert blobs.put_payloads([]) == []


def test_a_peek_sees_what_a_read_sees_unless_it_is_too_long(blobs: Blobs):
    payloads = [b"one", b"", b"x" * 1000]
    refs = blobs.put_payloads(payloads)
    # None is allowed where the file system does not tell what is in memory.
    assert all(blobs.peek_payload(ref, 1000) in (payload, None) for ref, payload in zip(refs, payloads, strict=True))
    assert blobs.peek_payload(refs[2], 999) is None


@pytest.mark.parametrize("ref", ["", "x", "a:b:c", "../../etc/passwd:0:5", "0" * 32 + ":0:5", "0" * 32 + ":0:-5"])
def test_a_ref_that_was_never_given_out_is_not_found(blobs: Blobs, ref: str):
    blobs.put_payloads([b"payload"])
    with pytest.raises(NotFound):
        blobs.get_payload(ref)
    assert peek_finds_nothing(blobs, ref)


def test_sweeping_frees_the_packs_that_nobody_needs(blobs: Blobs):
    kept, dropped = blobs.put_payloads([b"kept"])[0], blobs.put_payloads([b"dropped"])[0]
    assert blobs.sweep_packs(lambda packs: {pack for pack in packs if kept.startswith(f"{pack}:")}) == len(b"dropped")
    assert blobs.get_payload(kept) == b"kept"
    with pytest.raises(NotFound):
        blobs.get_payload(dropped)
    assert peek_finds_nothing(blobs, dropped)
    assert blobs.sweep_packs(all_in_use) == 0


def test_threads_append_side_by_side(blobs: Blobs):
    wrong: list[str] = []

    def append(n: int) -> None:
        payloads = [f"{n}-{i}".encode() * 50 for i in range(20)]
        for payload, ref in zip(payloads, blobs.put_payloads(payloads), strict=True):
            if blobs.get_payload(ref) != payload:
                wrong.append(ref)

    threads = [threading.Thread(target=append, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- packs on disk
def test_a_pack_is_closed_when_it_is_full(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path, pack_bytes=10)
    refs = [blobs.put_payloads([b"12345"])[0] for _ in range(4)]
    assert len(packs_in(tmp_path)) == 2
    assert [blobs.get_payload(ref) for ref in refs] == [b"12345"] * 4
    blobs.close()


def test_a_ref_past_the_end_of_its_pack_is_not_found(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    pack = blobs.put_payloads([b"12345"])[0].split(":")[0]
    assert blobs.get_payload(f"{pack}:4:1") == b"5"
    for beyond in (f"{pack}:4:2", f"{pack}:5:1", f"{pack}:0:999999999999999999"):
        with pytest.raises(NotFound):
            blobs.get_payload(beyond)
    blobs.close()


def test_a_torn_tail_harms_neither_what_was_acknowledged_nor_what_follows(tmp_path: Path):
    before = DirectoryBlobs(tmp_path)
    ref = before.put_payloads([b"acknowledged"])[0]
    before.close()
    with packs_in(tmp_path)[0].open("ab") as pack:
        pack.write(b"half of a pay")
    after = DirectoryBlobs(tmp_path)
    following = after.put_payloads([b"following"])[0]
    assert after.get_payload(ref) == b"acknowledged"
    assert after.get_payload(following) == b"following"
    after.close()


def test_a_pack_open_in_another_process_is_not_swept(tmp_path: Path):
    script = f"""
import sys
from pathlib import Path
from openrl.store.blobs import DirectoryBlobs
blobs = DirectoryBlobs(Path({str(tmp_path)!r}))
print(blobs.put_payloads([b"theirs"])[0], flush=True)
sys.stdin.read()
"""
    sweeper = DirectoryBlobs(tmp_path, grace_s=0.0)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        ref = other.stdout.readline().strip()
        assert sweeper.sweep_packs(nothing_in_use) == 0
        assert sweeper.get_payload(ref) == b"theirs"
        other.communicate()
    assert sweeper.sweep_packs(nothing_in_use) == len(b"theirs")
    sweeper.close()


def test_a_pack_is_kept_for_a_while_after_its_last_write(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path, pack_bytes=1, grace_s=3600.0)
    ref = blobs.put_payloads([b"not committed yet"])[0]
    assert blobs.sweep_packs(nothing_in_use) == 0
    assert blobs.get_payload(ref) == b"not committed yet"
    os.utime(packs_in(tmp_path)[0], (0, 0))
    assert blobs.sweep_packs(nothing_in_use) == len(b"not committed yet")
    blobs.close()


def test_a_pack_that_stopped_growing_is_closed_by_sweeping(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path, grace_s=0.0)
    first = blobs.put_payloads([b"idle"])[0]
    assert blobs.sweep_packs(all_in_use) == 0
    second = blobs.put_payloads([b"later"])[0]
    assert first.split(":")[0] != second.split(":")[0]
    blobs.close()


def test_a_disk_that_refuses_is_an_error_that_leaves_earlier_payloads_alone(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path, pack_bytes=1)
    ref = blobs.put_payloads([b"before"])[0]
    (tmp_path / "packs").rename(tmp_path / "away")
    with pytest.raises(Unavailable):
        blobs.put_payloads([b"lost"])
    (tmp_path / "away").rename(tmp_path / "packs")
    again = blobs.put_payloads([b"after"])[0]
    assert (blobs.get_payload(ref), blobs.get_payload(again)) == (b"before", b"after")
    blobs.close()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_an_error_that_leaves_what_was_there_and_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    blobs = DirectoryBlobs(tmp_path)
    ref = blobs.put_payloads([b"before"])[0]
    blobs.put_object("k", {"a": b"old", "b": b"old"})
    write = os.write

    def refuse(fd: int, data: bytes = b"") -> int:
        if data:
            write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, call, refuse)
        for put in (
            lambda: blobs.put_payloads([b"lost"]),
            lambda: blobs.put_object("k", {"a": b"new", "b": b"new"}),
            lambda: blobs.put_object("new", {"a": b"new"}),
            blobs.check if call == "write" else lambda: blobs.put_payloads([b"lost"]),
        ):
            with pytest.raises(Unavailable, match="No space left on device"):
                put()
    assert blobs.get_payload(ref) == b"before"
    assert blobs.get_object("k") == {"a": b"old", "b": b"old"}
    assert set(blobs.list_objects("")) == {"k"}
    assert [path.name for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == ["gate"]
    again = blobs.put_payloads([b"after"])[0]
    blobs.put_object("k", {"a": b"new"})
    blobs.check()
    assert (blobs.get_payload(ref), blobs.get_payload(again)) == (b"before", b"after")
    assert blobs.get_object("k") == {"a": b"new"}
    blobs.close()


def test_a_limit_of_the_kernel_on_files_is_met_in_the_same_way(tmp_path: Path):
    script = f"""
import resource
from pathlib import Path
from openrl.errors import Unavailable
from openrl.store.blobs import DirectoryBlobs
blobs = DirectoryBlobs(Path({str(tmp_path)!r}))
ref = blobs.put_payloads([b"before"])[0]
blobs.put_object("k", {{"a": b"old"}})
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
for put in (lambda: blobs.put_payloads([bytes(20_000)]), lambda: blobs.put_object("k", {{"a": bytes(20_000)}})):
    try:
        put()
    except Unavailable as error:
        print("refused:", error)
small = blobs.put_payloads([b"small"])[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
large = blobs.put_payloads([bytes(20_000)])[0]
assert [len(blobs.get_payload(each)) for each in (ref, small, large)] == [6, 5, 20_000]
assert blobs.get_object("k") == {{"a": b"old"}}
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert len(re.findall("^refused: .*File too large", done.stdout, re.MULTILINE)) == 2


# -- objects, in both kinds
def test_an_object_comes_back_whole(blobs: Blobs):
    files = {"adapter.safetensors": b"weights", "nested/config.json": b"{}", "empty": b""}
    assert blobs.put_object("checkpoints/a:train:0/weights/x", files) == 9
    assert blobs.get_object("checkpoints/a:train:0/weights/x") == files
    assert blobs.list_object("checkpoints/a:train:0/weights/x") == {
        "adapter.safetensors": 7,
        "nested/config.json": 2,
        "empty": 0,
    }


def test_objects_are_listed_by_the_beginning_of_their_keys(blobs: Blobs):
    started = time.time() - 1.0  # file times are coarser than the clock
    for key in ("snapshots/s:train:0/1", "snapshots/s:train:0/2", "snapshotsx", "checkpoints/a", "snapshots/gone"):
        blobs.put_object(key, {"a": b"1"})
    blobs.delete_object("snapshots/gone")
    listed = blobs.list_objects("snapshots/")
    assert set(listed) == {"snapshots/s:train:0/1", "snapshots/s:train:0/2"}
    assert all(started <= written_at <= time.time() + 1.0 for written_at in listed.values())
    assert blobs.list_objects("traces/") == {}


def test_an_object_is_replaced_whole(blobs: Blobs):
    blobs.put_object("k", {"a": b"1", "b": b"2"})
    blobs.put_object("k", {"a": b"3"})
    assert blobs.get_object("k") == {"a": b"3"}


def test_a_deleted_object_is_not_found_and_its_bytes_are_counted_once(blobs: Blobs):
    blobs.put_object("k", {"a": b"123", "d/b": b"45"})
    blobs.put_object("k/inner", {"a": b"stays"})
    assert blobs.delete_object("k") == 5
    assert blobs.delete_object("k") == 0
    for call in (blobs.get_object, blobs.list_object):
        with pytest.raises(NotFound):
            call("k")
    assert blobs.get_object("k/inner") == {"a": b"stays"}
    blobs.put_object("k", {"a": b"back"})
    assert blobs.get_object("k") == {"a": b"back"}


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/etc/passwd", "../x", ".", "a//b", "a/", "a\0b", "a\nb"])
def test_names_that_lead_elsewhere_are_refused(blobs: Blobs, name: str):
    with pytest.raises(InvalidRequest):
        blobs.put_object(name, {"a": b"1"})
    with pytest.raises(InvalidRequest):
        blobs.put_object("k", {name: b"1"})
    with pytest.raises(InvalidRequest):
        blobs.get_object(name)
    with pytest.raises(InvalidRequest):
        blobs.delete_object(name)
    with pytest.raises(NotFound):
        blobs.get_object("k")


def test_keys_that_look_alike_are_different_objects(blobs: Blobs):
    keys = ["a/b", "a:b", "a%2Fb", "a+b", "A/b", "ä", "x" * 250 + "1", "x" * 250 + "2", "é" * 80]
    for key in keys:
        blobs.put_object(key, {"key": key.encode()})
    assert [blobs.get_object(key) for key in keys] == [{"key": key.encode()} for key in keys]


# -- objects on disk
def test_a_file_of_an_object_has_a_local_path(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    blobs.put_object("k", {"d/a": b"bytes"})
    assert Path(blobs.open_path("k", "d/a")).read_bytes() == b"bytes"
    for key, name in (("k", "b"), ("k", "d"), ("other", "a")):
        with pytest.raises(NotFound):
            blobs.open_path(key, name)
    with pytest.raises(InvalidRequest):
        blobs.open_path("k", "../a")
    blobs.close()


def test_replacing_an_object_frees_the_old_files(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    for n in range(12):
        blobs.put_object("k", {"a": bytes([n])})
    files = [path for path in tmp_path.rglob("a") if path.is_file()]
    assert [path.read_bytes() for path in files] == [bytes([11])]
    blobs.close()


def test_readers_meet_the_old_or_the_new_object_never_a_mixture(tmp_path: Path):
    blobs = DirectoryBlobs(tmp_path)
    blobs.put_object("k", {"a": b"0", "b": b"0"})
    is_over = threading.Event()
    seen: list[dict[str, bytes]] = []

    def read() -> None:
        while not is_over.is_set():
            seen.append(blobs.get_object("k"))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(30):
        blobs.put_object("k", {"a": str(n).encode(), "b": str(n).encode()})
    is_over.set()
    reader.join()
    assert seen
    assert all(files["a"] == files["b"] for files in seen)
    blobs.close()


def test_a_process_killed_while_it_writes_an_object_leaves_the_old_one_and_no_litter(tmp_path: Path):
    script = f"""
import os, signal
from pathlib import Path
from openrl.store import objects
from openrl.store.blobs import DirectoryBlobs
blobs = DirectoryBlobs(Path({str(tmp_path)!r}))
blobs.put_object("k", {{"a": b"old"}})
write = objects.write_file
def write_and_die(path, data):
    write(path, data)
    os.kill(os.getpid(), signal.SIGKILL)
objects.write_file = write_and_die
blobs.put_object("k", {{"a": b"new", "b": b"new"}})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert len([path for path in (tmp_path / "tmp").rglob("a") if path.is_file()]) == 1
    blobs = DirectoryBlobs(tmp_path)
    assert blobs.get_object("k") == {"a": b"old"}
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == [tmp_path / "tmp" / "gate"]
    blobs.close()


def test_a_living_process_keeps_its_drafts_when_another_one_opens(tmp_path: Path):
    first = DirectoryBlobs(tmp_path)
    workplaces = [path for path in (tmp_path / "tmp").iterdir() if path.is_dir()]
    second = DirectoryBlobs(tmp_path)
    assert all(path.exists() for path in workplaces)
    first.put_object("k", {"a": b"1"})
    assert second.get_object("k") == {"a": b"1"}
    first.close()
    second.close()
    assert [path for path in (tmp_path / "tmp").iterdir() if path.is_dir()] == []


def test_a_directory_that_cannot_be_used_is_said_so(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable):
        DirectoryBlobs(tmp_path / "file")
