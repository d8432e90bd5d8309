"""Headers that lie, files of other kinds: refused before anything is allocated or run."""

import json
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from openrl.config import WorkerConfig
from openrl.errors import InvalidRequest
from openrl.model.base_model import load_base_model, resolve_source
from openrl.model.checked_tensors import MAX_HEADER_BYTES, load_tensors
from openrl.model.peft_files import CONFIG_FILE, WEIGHTS_FILE, adapter_files, read_adapter
from openrl.model.weight_files import INDEX_FILE, SINGLE_FILE, load_causal_lm, weight_files
from tests.model.test_lora import random_adapter
from tests.model.tiny_models import load_tiny, save_tiny_model

NAME = "a.safetensors"
ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def written(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def load(content: bytes, **options: bool) -> dict[str, torch.Tensor]:
    return load_tensors({NAME: content}, NAME, **options)


def test_a_true_header_gives_the_tensors():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 4)}
    back = load(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert load(written({"x": ENTRY}))["x"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "header of 0 bytes"),
        (b"\xff" * 8, "does not fit"),
        (written({"x": ENTRY}, length=2**40), "does not fit"),
        (written({"x": ENTRY}, length=MAX_HEADER_BYTES + 1), "does not fit"),
        (written(b"[" * 100_000), "no JSON object"),
        (written(b"[]"), "no JSON object"),
        (written(b"\xff\xfe"), "no JSON object"),
        (written(b'{"x": 1, "x": 2}'), "distinct names"),
        (written({"x": []}), "not described"),
        (written({"x": {**ENTRY, "more": 1}}), "not described"),
        (written({"x": {**ENTRY, "dtype": "U64"}}), "has dtype 'U64'"),
        (written({"x": {**ENTRY, "dtype": ["F32"]}}), "has dtype"),
        (written({"x": {**ENTRY, "shape": [2**40, 2**40]}}), "its shape"),
        (written({"x": {**ENTRY, "shape": [-2, -2]}}), "has shape"),
        (written({"x": {**ENTRY, "shape": [2.0, 2]}}), "has shape"),
        (written({"x": {**ENTRY, "shape": [True, 4]}}), "has shape"),
        (written({"x": {**ENTRY, "shape": [1] * 5}}), "has shape"),
        (written({"x": {**ENTRY, "shape": [2, 2, 2]}}), "takes 32"),
        (written({"x": {**ENTRY, "data_offsets": [0, 17]}}), "has 17 bytes"),
        (written({"x": {**ENTRY, "data_offsets": [16, 0]}}), "has -16 bytes"),
        (written({"x": {**ENTRY, "data_offsets": [16, 32]}}), "ends at byte"),
        (written({"x": {**ENTRY, "data_offsets": [0, 2**62]}}), "two places"),
        (written({"x": ENTRY, "y": ENTRY}), "ends at byte 16 and the next starts at 0"),
        (written({"x": ENTRY, "y": {**ENTRY, "data_offsets": [8, 24]}}, bytes(24)), "ends at byte 16"),
        (written({"x": ENTRY}, bytes(20)), "ends at byte 16 and the next starts at 20"),
        (written({"x": ENTRY}, bytes(12)), "ends at byte 16 and the next starts at 12"),
        (pickle.dumps({"x": 1}), "does not fit"),
    ],
)
def test_headers_that_lie_are_refused(content: bytes, part: str):
    with pytest.raises(InvalidRequest, match=part):
        load(content)


def test_values_that_are_not_finite_are_refused_where_they_must_be():
    for value in (float("nan"), float("inf"), -float("inf")):
        content = safetensors.torch.save({"x": torch.tensor([0.0, value, 1.0])})
        with pytest.raises(InvalidRequest, match="not finite"):
            load(content)
        assert len(load(content, is_finite=False)["x"]) == 3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_damaged_is_refused_or_read_without_harm(data: st.DataObject):
    whole = bytearray(safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.tensor(3)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    tracemalloc.start()
    try:
        load(content)
    except InvalidRequest:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"r": 6.0}, "r is 6.0"),
        ({"r": 10**400}, "r is 1000"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": "32"}, "lora_alpha is 32"),
        ({"use_dora": True}, "sets use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "sets rank_pattern"),
    ],
)
def test_adapters_of_another_make_are_refused(tiny_dirs: dict[str, Path], changes: dict[str, Any], part: str):
    model = load_tiny(tiny_dirs["llama"])
    files = adapter_files(random_adapter(model, 6, 1), "tiny")
    config = json.dumps({**json.loads(files[CONFIG_FILE]), **changes}).encode()
    with pytest.raises(InvalidRequest, match=part):
        read_adapter({**files, CONFIG_FILE: config}, model.linear_shapes)
    for odd in (b"[]", b"[" * 100_000, b"null", b"\xff"):
        with pytest.raises(InvalidRequest, match="damaged"):
            read_adapter({**files, CONFIG_FILE: odd}, model.linear_shapes)


def test_factors_under_wrong_names_or_of_whole_numbers_are_refused(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    files = adapter_files(random_adapter(model, 6, 1), "tiny")
    tensors = safetensors.torch.load(files[WEIGHTS_FILE])
    bare = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    whole = {name: tensor.to(torch.int64) for name, tensor in tensors.items()}
    for wrong, part in ((bare, "not LoRA factors|holds tensors"), (whole, "must be real numbers")):
        with pytest.raises(InvalidRequest, match=part):
            read_adapter({**files, WEIGHTS_FILE: safetensors.torch.save(wrong)}, model.linear_shapes)


# -- model directories, which the operator gives


def test_weights_that_may_run_code_are_not_read(tmp_path: Path):
    path = save_tiny_model("llama", tmp_path / "model")
    (path / SINGLE_FILE).unlink()
    torch.save({}, path / "pytorch_model.bin")
    config = AutoConfig.from_pretrained(path)
    for device in ("cpu", "meta"):
        with pytest.raises(InvalidRequest, match="may run code"):
            load_causal_lm(path, config, torch.float32, "eager", torch.device(device))


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "pytorch_model.bin", "a/b.safetensors"])
def test_an_index_that_leaves_its_directory_is_refused(tmp_path: Path, name: str):
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(InvalidRequest, match="no safetensors file beside it"):
        weight_files(tmp_path)


def test_code_in_a_model_directory_is_never_run(tmp_path: Path, tiny_dirs: dict[str, Path]):
    path = tmp_path / "model"
    shutil.copytree(tiny_dirs["llama"], path)
    mark = tmp_path / "it-ran"
    (path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((path / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (path / "config.json").write_text(json.dumps({**config, "auto_map": auto_map, "model_type": "evil"}))
    source = resolve_source("tiny", path, WorkerConfig(device="cpu"))
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code|evil"):
        load_base_model(source)
    assert not mark.exists()
