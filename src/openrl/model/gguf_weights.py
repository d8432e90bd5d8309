"""Turns the tensors of a GGUF file into Hugging Face names, layouts and bfloat16."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from openrl.errors import InvalidRequest

ROWS_AT_ONCE = 16384
"""Rows dequantised together: bounds the fp32 copy of an embedding with 262,144 rows."""

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_NAMES = {**BLOCK_NAMES, "ffn_norm": "post_attention_layernorm"}
GEMMA_NAMES = {
    **BLOCK_NAMES,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

Transform = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]


def hugging_face_name(name: str, block_names: dict[str, str]) -> str:
    """The name of the same tensor in a Hugging Face checkpoint; raises InvalidRequest for an unknown one."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in block_names:
        raise InvalidRequest(f"tensor {name!r} has no counterpart in the Hugging Face layout")
    return f"model.layers.{match[1]}.{block_names[match[2]]}.weight"


def gemma_transform(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Norm weights as Hugging Face has them: GGUF stores the factor, Hugging Face the factor minus one."""
    return values - np.float32(1.0) if name.endswith("norm.weight") else values


def llama_transform(num_heads: int, num_kv_heads: int) -> Transform:
    """Undoes the row order that GGUF gives query and key projections for its rotary embedding."""

    def transform(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if name.endswith("attn_q.weight"):
            return _halves_from_pairs(values, num_heads)
        if name.endswith("attn_k.weight"):
            return _halves_from_pairs(values, num_kv_heads)
        return values

    return transform


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; values must be finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def save_weights(
    file: Path,
    tensors: list[ReaderTensor],
    block_names: dict[str, str],
    transform: Transform,
    on_tensor: Callable[[int, int], None],
) -> None:
    """Write a bfloat16 safetensors file; `on_tensor(done, total)` is called after each tensor."""
    arrays: dict[str, NDArray[np.uint16]] = {}
    for done, tensor in enumerate(tensors, start=1):
        arrays[hugging_face_name(tensor.name, block_names)] = _bfloat16_tensor(tensor, transform)
        on_tensor(done, len(tensors))
    specs = {name: _spec(array) for name, array in arrays.items()}  # points into `arrays`: keep both alive
    serialize_file(specs, str(file), {"format": "pt"})
    file.chmod(0o644)  # safetensors leaves 0600, which a server under another account cannot read


def _bfloat16_tensor(tensor: ReaderTensor, transform: Transform) -> NDArray[np.uint16]:
    if tensor.name == "token_embd.weight":  # never transformed, and too large for one fp32 copy
        return np.concatenate(list(_embedding_rows(tensor)))
    return to_bfloat16(transform(tensor.name, _finite(tensor.name, dequantize(tensor.data, tensor.tensor_type))))


def _embedding_rows(tensor: ReaderTensor) -> Iterator[NDArray[np.uint16]]:
    for start in range(0, tensor.data.shape[0], ROWS_AT_ONCE):
        rows = dequantize(tensor.data[start : start + ROWS_AT_ONCE], tensor.tensor_type)
        yield to_bfloat16(_finite(tensor.name, rows))


def _finite(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise InvalidRequest(f"tensor {name!r} holds values that are not finite")
    return values.astype(np.float32, copy=False)


def _halves_from_pairs(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    rows, columns = values.shape
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _spec(array: NDArray[np.uint16]) -> TensorSpec:
    return TensorSpec(dtype="bfloat16", shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
