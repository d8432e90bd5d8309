"""PEFT directories: written, read back, refused when they do not fit."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from openrl.errors import InvalidRequest
from openrl.model.peft_files import CONFIG_FILE, WEIGHTS_FILE, adapter_files, read_adapter
from tests.model.test_lora import filled_bank, logprobs, random_adapter
from tests.model.tiny_models import load_plain, load_tiny, packed


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_peft_loads_our_files_and_gives_our_logits(tiny_dirs: dict[str, Path], tmp_path: Path, family: str):
    model = load_tiny(tiny_dirs[family])
    adapter = random_adapter(model, 6, 1)
    for name, content in adapter_files(adapter, str(tiny_dirs[family])).items():
        (tmp_path / name).write_bytes(content)
    twin = PeftModel.from_pretrained(load_plain(tiny_dirs[family]), tmp_path).eval()
    sequence = list(range(20, 90))
    with torch.no_grad():
        batch = packed(model, [sequence], filled_bank(model, [adapter]), [0])
        ours = model.logits(model.hidden(batch), batch.adapters, batch.segments)[: len(sequence)]
        expected = twin(torch.tensor([sequence])).logits[0]
    assert (logprobs(ours, sequence) - logprobs(expected, sequence)).abs().max() < 1e-4


def test_what_is_written_reads_back_bit_for_bit(tiny_dirs: dict[str, Path]):
    model = load_tiny(tiny_dirs["llama"])
    adapter = random_adapter(model, 6, 1)
    back = read_adapter(adapter_files(adapter, "tiny"), model.linear_shapes)
    assert (back.rank, back.alpha, list(back.pairs)) == (adapter.rank, adapter.alpha, list(adapter.pairs))
    assert all(torch.equal(back.pairs[n].b_OR, adapter.pairs[n].b_OR) for n in adapter.pairs)


def test_files_that_do_not_fit_are_refused_with_the_reason(tiny_dirs: dict[str, Path]):
    llama, gemma = load_tiny(tiny_dirs["llama"]), load_tiny(tiny_dirs["gemma3"])
    files = adapter_files(random_adapter(llama, 6, 1), "tiny")
    with pytest.raises(InvalidRequest, match="expected"):
        read_adapter(files, gemma.linear_shapes)
    with pytest.raises(InvalidRequest, match="does not have"):
        read_adapter(files, {"lm_head": (64, 515)})
    with pytest.raises(InvalidRequest, match="damaged"):
        read_adapter({**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:100]}, llama.linear_shapes)
    with pytest.raises(InvalidRequest, match="missing"):
        read_adapter({WEIGHTS_FILE: files[WEIGHTS_FILE]}, llama.linear_shapes)
    broken = {**json.loads(files[CONFIG_FILE]), "r": 0}
    with pytest.raises(InvalidRequest, match="r is 0"):
        read_adapter({**files, CONFIG_FILE: json.dumps(broken).encode()}, llama.linear_shapes)
