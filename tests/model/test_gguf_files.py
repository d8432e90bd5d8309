import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from openrl.errors import InvalidRequest
from openrl.model.downloads import DEFAULT_MODELS_DIR
from openrl.model.gguf_files import convert_gguf
from tests.model.gguf_samples import HEADS, KV_HEADS, Sample, write_gemma, write_llama

ENGLISH = (
    "The old town hall was built in 1874, when the river still carried most of the trade between the two cities. "
    "For many years it served as a meeting place for farmers, who came every Saturday to sell vegetables, wool and "
    "cheese. After the railway arrived, the market moved closer to the station, and the hall became a library."
)


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


def converted(sample: Sample, target: Path) -> dict[str, torch.Tensor]:
    convert_gguf(sample.path, target, ignore)
    return load_file(target / "model.safetensors")


def test_a_gemma_directory_loads_in_transformers_with_every_weight_in_place(tmp_path: Path):
    sample = write_gemma(tmp_path / "gemma.gguf")
    tensors = converted(sample, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.architectures == ["Gemma3ForCausalLM"]
    assert set(tensors) == set(model.state_dict()) - {"lm_head.weight"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.isfinite(model(torch.tensor([[2, 5, 6]])).logits).all()


def test_gemma_norms_lose_the_one_that_gguf_adds(tmp_path: Path):
    sample = write_gemma(tmp_path / "gemma.gguf")
    tensors = converted(sample, tmp_path / "hf")
    for name, theirs in {
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.post_attention_norm.weight",
        "model.layers.1.pre_feedforward_layernorm.weight": "blk.1.ffn_norm.weight",
        "model.layers.1.self_attn.q_norm.weight": "blk.1.attn_q_norm.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        torch.testing.assert_close(
            tensors[name].float(), torch.from_numpy(sample.weights[theirs] - 1), rtol=2**-8, atol=1e-6
        )


def test_projections_are_within_the_rounding_of_their_quantisation(tmp_path: Path):
    sample = write_gemma(tmp_path / "gemma.gguf")
    tensors = converted(sample, tmp_path / "hf")
    theirs = torch.from_numpy(sample.weights["blk.1.ffn_down.weight"])
    torch.testing.assert_close(tensors["model.layers.1.mlp.down_proj.weight"].float(), theirs, rtol=0.02, atol=0.03)
    embedding = torch.from_numpy(sample.weights["token_embd.weight"])
    torch.testing.assert_close(tensors["model.embed_tokens.weight"].float(), embedding, rtol=0.02, atol=0.03)


@pytest.mark.parametrize(("projection", "num_heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_llama_query_and_key_rows_return_to_the_order_of_hugging_face(tmp_path: Path, projection: str, num_heads: int):
    sample = write_llama(tmp_path / "llama.gguf")
    ours = converted(sample, tmp_path / "hf")[f"model.layers.0.self_attn.{projection}_proj.weight"].float().numpy()
    stored = sample.weights[f"blk.0.attn_{projection}.weight"]
    # GGUF interleaves the two halves of each head: stored row 2i is our row i, stored row 2i + 1 our row i + half.
    heads, half = stored.reshape(num_heads, -1, stored.shape[1]), stored.shape[0] // num_heads // 2
    expected = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(stored.shape)
    assert half > 1
    np.testing.assert_allclose(ours, expected, rtol=0.02, atol=0.03)


def test_a_llama_directory_loads_in_transformers_with_its_tokenizer(tmp_path: Path):
    convert_gguf(write_llama(tmp_path / "llama.gguf").path, tmp_path / "hf", ignore)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.config.tie_word_embeddings
    assert tokenizer.chat_template == "{{ messages }}"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    assert tokenizer.decode(tokenizer.encode("12 ab")) == "12 ab"


def test_the_config_says_what_the_file_says(tmp_path: Path):
    convert_gguf(write_gemma(tmp_path / "gemma.gguf").path, tmp_path / "hf", ignore)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rms_norm_eps"] == 1e-6
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10_000.0
    assert AutoConfig.from_pretrained(tmp_path / "hf").sliding_window == 8


def test_progress_is_reported_for_every_tensor(tmp_path: Path):
    sample, seen = write_llama(tmp_path / "llama.gguf"), list[tuple[int, int]]()
    convert_gguf(sample.path, tmp_path / "hf", lambda done, total: seen.append((done, total)))
    total = len(sample.weights)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_an_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path):
    sample = write_llama(tmp_path / "llama.gguf")
    content = sample.path.read_bytes().replace(b"llama", b"lemma")
    sample.path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="'lemma'"):
        convert_gguf(sample.path, tmp_path / "hf", ignore)


def test_a_file_without_a_tokenizer_is_refused_by_key(tmp_path: Path):
    writer = GGUFWriter(tmp_path / "empty.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidRequest, match=r"tokenizer\.ggml\.tokens"):
        convert_gguf(tmp_path / "empty.gguf", tmp_path / "hf", ignore)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma-3-270m", "smollm2-135m-instruct"])
def test_a_fetched_model_reads_plain_english_with_low_perplexity(name: str):
    path = DEFAULT_MODELS_DIR / name
    if not path.is_dir():
        pytest.fail(f"run `openrl models fetch {name}` first")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(ENGLISH)])
    with torch.no_grad():
        perplexity = float(torch.exp(model(ids, labels=ids).loss))
    assert 6 < perplexity < 20
