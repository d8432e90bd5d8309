"""Small GGUF files of the two architectures, with weights that the tests can recompute."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 96, 4, 2, 16, 2

SENTENCEPIECE = (
    ("<pad>", TokenType.CONTROL, -1000.0),
    ("<eos>", TokenType.CONTROL, -1000.0),
    ("<bos>", TokenType.CONTROL, -1000.0),
    ("<unk>", TokenType.CONTROL, -1000.0),
    ("<unused0>", TokenType.CONTROL, -1000.0),
    ("  ", TokenType.USER_DEFINED, -1000.0),
    ("   ", TokenType.USER_DEFINED, -1000.0),
    *((f"<0x{byte:02X}>", TokenType.BYTE, 0.0) for byte in range(256)),
    ("ab", TokenType.NORMAL, -1.0),
    ("bc", TokenType.NORMAL, -2.0),
    ("abc", TokenType.NORMAL, -3.0),
    ("\u2581a", TokenType.NORMAL, -4.0),
    ("a", TokenType.NORMAL, -100.0),
    ("b", TokenType.NORMAL, -101.0),
    ("c", TokenType.NORMAL, -102.0),
    ("\u2581", TokenType.NORMAL, -103.0),
)
BYTE_LEVEL = (
    ("<|endoftext|>", TokenType.CONTROL),
    ("<|im_start|>", TokenType.CONTROL),
    ("<|im_end|>", TokenType.CONTROL),
    *((piece, TokenType.NORMAL) for piece in ("0", "1", "2", "a", "b", "\u0120", "12", "ab", "\u0120a")),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A file and the values that were put into it, by GGUF name."""

    path: Path
    weights: dict[str, NDArray[np.float32]]


def write_gemma(path: Path) -> Sample:
    """A Gemma 3 file of two layers; projections quantised to Q8_0."""
    writer = GGUFWriter(path, "gemma3")
    _write_sizes(writer)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _, _ in SENTENCEPIECE])
    writer.add_token_types([kind for _, kind, _ in SENTENCEPIECE])
    writer.add_token_scores([score for _, _, score in SENTENCEPIECE])
    writer.add_pad_token_id(0)
    _write_special(writer, bos=2, eos=1, unk=3, adds_bos=True)
    names = _block_shapes() | {
        f"blk.{layer}.{name}.weight": (size,)
        for layer in range(LAYERS)
        for name, size in (
            ("attn_q_norm", HEAD_DIM),
            ("attn_k_norm", HEAD_DIM),
            ("post_attention_norm", HIDDEN),
            ("post_ffw_norm", HIDDEN),
        )
    }
    return _write(writer, path, {"token_embd.weight": (len(SENTENCEPIECE), HIDDEN), **names})


def write_llama(path: Path) -> Sample:
    """A Llama file of two layers with a byte-level tokenizer."""
    writer = GGUFWriter(path, "llama")
    _write_sizes(writer)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([piece for piece, _ in BYTE_LEVEL])
    writer.add_token_types([kind for _, kind in BYTE_LEVEL])
    writer.add_token_merges(["1 2", "a b", "\u0120 a"])
    writer.add_chat_template("{{ messages }}")
    _write_special(writer, bos=1, eos=2, unk=0, adds_bos=False)
    return _write(writer, path, {"token_embd.weight": (len(BYTE_LEVEL), HIDDEN), **_block_shapes()})


def _write_sizes(writer: GGUFWriter) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)


def _write_special(writer: GGUFWriter, bos: int, eos: int, unk: int, adds_bos: bool) -> None:
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(unk)
    writer.add_add_bos_token(adds_bos)


def _block_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    blocks = {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    return {"output_norm.weight": (HIDDEN,), **blocks}


def _write(writer: GGUFWriter, path: Path, shapes: dict[str, tuple[int, ...]]) -> Sample:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, values in weights.items():
        if values.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Sample(path, weights)
