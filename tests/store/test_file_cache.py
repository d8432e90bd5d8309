import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from openrl.errors import Unavailable
from openrl.store.file_cache import IN_USE_S, FileCache


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A file that is fetched, and how often it was."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.num_fetches = 0

    def __call__(self, file: BinaryIO) -> None:
        self.num_fetches += 1
        file.write(self.data)


def test_a_file_is_fetched_once_and_keeps_its_name(tmp_path: Path):
    cache, source = FileCache(tmp_path, 100), Source(b"12345")
    path = Path(cache.path_of("v1", "nested/a.bin", 5, source))
    assert (path.name, path.read_bytes()) == ("a.bin", b"12345")
    assert cache.path_of("v1", "nested/a.bin", 5, source) == str(path)
    assert FileCache(tmp_path, 100).path_of("v1", "nested/a.bin", 5, source) == str(path)
    assert cache.path_of("v2", "nested/a.bin", 5, source) != str(path)
    assert source.num_fetches == 2


def test_what_was_not_used_for_longest_goes_first_and_what_was_just_used_stays(tmp_path: Path):
    clock = Clock()
    cache = FileCache(tmp_path, 25, clock)
    first, second, third = (Path(cache.path_of(version, "a", 10, Source(b"x" * 10))) for version in "123")
    assert first.exists()  # over the bound, but somebody may be about to open it
    clock.now += IN_USE_S / 2
    cache.path_of("1", "a", 10, Source(b""))
    clock.now += IN_USE_S / 2
    fourth = Path(cache.path_of("4", "a", 10, Source(b"y" * 10)))
    assert [path.exists() for path in (first, second, third, fourth)] == [True, False, False, True]
    assert not second.parent.exists()


def test_a_copy_of_the_wrong_size_is_fetched_again(tmp_path: Path):
    cache = FileCache(tmp_path, 100)
    path = Path(cache.path_of("v", "a", 5, Source(b"12345")))
    path.write_bytes(b"")
    assert Path(cache.path_of("v", "a", 5, Source(b"12345"))).read_bytes() == b"12345"


def test_those_who_ask_together_fetch_once(tmp_path: Path):
    source, is_open = Source(b"12345"), threading.Event()

    def slowly(file: BinaryIO) -> None:
        is_open.wait()
        source(file)

    caches = [FileCache(tmp_path, 100) for _ in range(3)]
    paths: list[str] = []

    def ask(cache: FileCache) -> None:
        paths.append(cache.path_of("v", "a", 5, slowly))

    threads = [threading.Thread(target=ask, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    is_open.set()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert source.num_fetches == 1


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path):
    def fail(file: BinaryIO) -> None:
        file.write(b"123")
        raise Unavailable("the store is away")

    cache = FileCache(tmp_path, 100)
    with pytest.raises(Unavailable, match="the store is away"):
        cache.path_of("v", "a", 5, fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"] == []
    assert Path(cache.path_of("v", "a", 5, Source(b"12345"))).read_bytes() == b"12345"


def test_a_full_disk_is_said_so(tmp_path: Path):
    def fill(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable, match=r"keep a copy of 'a'.*No space left"):
        FileCache(tmp_path, 100).path_of("v", "a", 5, fill)


def test_processes_share_a_cache_that_is_always_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = f"""
import random, sys
from pathlib import Path
from openrl.store import file_cache
file_cache.IN_USE_S = 1.0
cache = file_cache.FileCache(Path({str(tmp_path)!r}), 50)
for n in range(300):
    version = str(random.randrange(20))
    data = version.encode() * 10
    path = cache.path_of(version, "d/a", len(data), lambda file: file.write(data))
    assert Path(path).read_bytes() == data
"""
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
