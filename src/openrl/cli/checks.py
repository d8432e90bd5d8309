"""What `openrl doctor` looks at: each check says what it found, and how to mend it where it is wrong."""

import importlib.metadata
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from openrl.catalog import Catalog
from openrl.cli.data_dir import DataDir
from openrl.config import Config, ModelConfig
from openrl.errors import OpenRLError
from openrl.store.engines import probe

_GIB = 2**30
_MIN_DISK_BYTES = 5 * _GIB
_MIN_MEMORY_BYTES = 4 * _GIB
_SLOW_FSYNC_S = 0.05
_NUM_FSYNCS = 5
_TESTED_SDK = "0.38"
_TORCH_PROBE = """
import torch
print(torch.__version__)
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. `remedy` is empty where all is well."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether something should be mended."""
        return bool(self.remedy)


def run_checks(config: Config) -> Iterator[Finding]:
    """All findings about this machine and this configuration, one after the other."""
    yield check_python()
    yield check_torch(config.worker.device)
    yield check_memory()
    yield from check_data_dir(config.data_dir)
    if config.store.url:
        yield check_database(config.store.url)
    yield check_port(config.gateway.host, config.gateway.port)
    yield from check_models(config.models)
    yield check_key_file(DataDir(config.data_dir).key_file)
    yield check_sdk()


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Whether this Python is one that the project runs on."""
    found = ".".join(map(str, version))
    return Finding("Python", found, "" if version >= (3, 11) else "install Python 3.11 or newer")


def check_torch(device: str, python: str = sys.executable) -> Finding:
    """Which PyTorch there is, and whether the wanted device answers."""
    # In a process of its own: the command line stays fast, and a broken installation breaks nothing else.
    probe = subprocess.run([python, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        last_line = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("PyTorch", f"cannot be imported: {last_line}", "install torch: pip install 'torch>=2.11'")
    version, *gpus = probe.stdout.strip().splitlines()
    remedy = "install a CUDA build of torch, or set worker.device = 'cpu'"
    is_missing = device.startswith("cuda") and not gpus
    return Finding("PyTorch", f"{version}, {', '.join(gpus) or 'CPU only'}", remedy if is_missing else "")


def check_memory() -> Finding:
    """Whether a small model fits beside the server."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    remedy = "" if total >= _MIN_MEMORY_BYTES else "models need at least 4 GiB: use a larger machine"
    return Finding("memory", f"{total / _GIB:.1f} GiB", remedy)


def check_data_dir(data_dir: Path) -> Iterator[Finding]:
    """Whether the data directory takes writes, has room, and syncs fast."""
    place = next(each for each in (data_dir, *data_dir.absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("data directory", f"{place} cannot be written", f"chown or chmod {place}, or give --data-dir")
        return
    free = shutil.disk_usage(place).free
    room = "" if free >= _MIN_DISK_BYTES else "free at least 5 GiB, or put --data-dir on a larger disk"
    yield Finding("disk space", f"{free / _GIB:.1f} GiB free at {place}", room)
    seconds = measure_fsync(place)
    speed = "" if seconds <= _SLOW_FSYNC_S else "every request waits for this: put --data-dir on a local SSD"
    yield Finding("fsync", f"{seconds * 1000:.1f} ms", speed)


def check_database(url: str) -> Finding:
    """Whether the database that `store.url` names answers."""
    try:
        return Finding("database", probe(url))
    except OpenRLError as error:
        return Finding("database", str(error), "start it, or correct store.url (postgresql://USER@HOST/DATABASE)")


def measure_fsync(directory: Path, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one small durable write takes there, the median of a few."""
    file = directory / f".openrl-doctor-{uuid.uuid4().hex}"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        return sorted(_time_sync(descriptor, clock) for _ in range(_NUM_FSYNCS))[_NUM_FSYNCS // 2]
    finally:
        os.close(descriptor)
        file.unlink()


def check_port(host: str, port: int) -> Finding:
    """Whether the server could listen there."""
    if port == 0:
        return Finding("port", "any free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with closing(socket.socket(family)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return Finding("port", f"{host}:{port}: {error.strerror}", "stop what listens there, or give --port 0")
    return Finding("port", f"{host}:{port} is free")


def check_models(models: tuple[ModelConfig, ...]) -> Iterator[Finding]:
    """Whether every model has a configuration, weights and a tokenizer that can be read."""
    if not models:
        yield Finding("models", "none configured", "give --model NAME, after: openrl models fetch gemma-3-270m")
    for model in models:
        yield _check_model(model)


def check_key_file(key_file: Path) -> Finding:
    """Whether nobody but its owner can read the first key."""
    if not key_file.exists():
        return Finding("key file", "not there yet; made on the first start")
    mode = stat.S_IMODE(key_file.stat().st_mode)
    remedy = f"chmod 600 {key_file}" if mode & 0o077 else ""
    return Finding("key file", f"{key_file} has mode {mode:04o}", remedy)


def check_sdk() -> Finding:
    """Whether the client SDK, if it is installed here, is one that was tested."""
    try:
        version = importlib.metadata.version("tinker")
    except importlib.metadata.PackageNotFoundError:
        return Finding("tinker SDK", "not installed here; clients need: pip install tinker")
    is_tested = version.startswith(f"{_TESTED_SDK}.")
    return Finding("tinker SDK", version, "" if is_tested else f"tested with {_TESTED_SDK}: pip install tinker==0.38.0")


def _time_sync(descriptor: int, clock: Callable[[], float]) -> float:
    started = clock()
    os.write(descriptor, b"x" * 4096)
    os.fsync(descriptor)
    return clock() - started


def _check_model(model: ModelConfig) -> Finding:
    subject = f"model {model.name}"
    try:
        info = Catalog.load((model,)).get(model.name)
    except (OpenRLError, OSError, ValueError) as error:
        return Finding(subject, str(error), "point --model NAME=DIR at a Hugging Face directory")
    lacks = [
        what
        for what, pattern in (("weights (*.safetensors)", "*.safetensors"), ("a tokenizer (tokenizer*)", "tokenizer*"))
        if not any(os.access(file, os.R_OK) for file in model.path.glob(pattern))
    ]
    if lacks:
        return Finding(subject, f"{model.path} lacks {' and '.join(lacks)}", "fetch or copy the model again")
    return Finding(subject, f"{info.architecture}, context {info.context_length}, at {model.path}")
