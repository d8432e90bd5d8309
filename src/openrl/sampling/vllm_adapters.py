"""Writes sampler snapshots as PEFT directories where vLLM servers can read them.

A name says one content for ever: it is made from the snapshot's key, which is never used twice. vLLM reads a directory
again when it has no room for all adapters, so one may only be deleted when no server knows its name any more.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from openrl.errors import InvalidRequest, RequestFailed

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ReadObject = Callable[[str], Mapping[str, bytes]]
"""The files stored under a key; raises OpenRLError where there are none. Used from threads of its own."""
_PREFIX = "openrl-"
_HEADER_BYTES = 8


class AdapterDirectory:
    """One worker's own directory: no other deletes what is in it, or loads it under the same names."""

    def __init__(self, root: Path, read_object: ReadObject) -> None:
        self._root = root.absolute()
        self._read_object = read_object
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def name_of(self, key: str) -> str:
        """What the servers call the adapter under a key."""
        return _PREFIX + hashlib.blake2b(f"{self._root}\n{key}".encode(), digest_size=16).hexdigest()

    def path_of(self, name: str) -> Path:
        """Where an adapter is, or would be."""
        return self._root / name

    async def have(self, key: str) -> Path:
        """The directory of the adapter under a key, written once however many ask; raises OpenRLError."""
        name = self.name_of(key)
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            return await asyncio.to_thread(self._write, key, self.path_of(name))

    async def delete(self, name: str, is_needed: Callable[[], bool]) -> None:
        """No server has the name any more; nothing happens where it `is_needed` again by its turn."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            if not is_needed():
                await asyncio.to_thread(self._delete, self.path_of(name))

    def names(self) -> list[str]:
        """Everything here, also from before a restart."""
        return [path.name for path in self._root.glob(f"{_PREFIX}*")] if self._root.is_dir() else []

    def clear_torn(self) -> None:
        """Delete what a killed process was about to write or to delete; at the start, before anything else."""
        for path in self._root.glob(f".{_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, key: str, path: Path) -> Path:
        if (path / CONFIG_FILE).is_file():
            return path
        files = self._read_object(key)
        missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if name not in files]
        if missing:
            raise RequestFailed(f"the snapshot lacks {', '.join(missing)}", "server")
        refuse_head(files[WEIGHTS_FILE])
        aside = _aside(path)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            (aside / name).write_bytes(files[name])
        shutil.rmtree(path, ignore_errors=True)
        aside.replace(path)  # all of it is there, or nothing
        return path

    def _delete(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.replace(_aside(path))  # all of it is gone, or nothing
        shutil.rmtree(_aside(path), ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def refuse_head(weights: bytes) -> None:
    """Raises InvalidRequest for an adapter of the output head: vLLM takes the files and computes something else.

    Measured with vLLM 0.26 (`bench.peers.vllm_peer`): 0.06 nats away, about as far as without that part.
    """
    size = int.from_bytes(weights[:_HEADER_BYTES], "little")
    try:
        names = msgspec.json.decode(weights[_HEADER_BYTES : _HEADER_BYTES + size], type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise RequestFailed(f"the snapshot is damaged: {error}", "server") from error
    if any(".lm_head." in f".{name}" or ".embed_tokens." in f".{name}" for name in names):
        message = "the snapshot trains the output head (train_unembed), which vLLM does not compute as trained"
        raise InvalidRequest(f"{message}; sample from it with the built-in engine", "not_supported")
