"""Turns a GGUF file into a Hugging Face model directory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gguf import GGUFReader

from openrl.errors import InvalidRequest
from openrl.model.gguf_weights import (
    GEMMA_NAMES,
    LLAMA_NAMES,
    Transform,
    gemma_transform,
    llama_transform,
    save_weights,
)
from openrl.model.tokenizer_files import Vocabulary, tokenizer_config, tokenizer_json

GEMMA_GLOBAL_LAYER_EVERY = 6
"""Gemma 3 attends globally in each sixth layer; GGUF does not say so."""
GEMMA_LOCAL_ROPE_THETA = 10_000.0
"""The rotary base of Gemma 3's sliding-window layers; GGUF holds that of the global ones alone."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """The key-value section of a GGUF file, read by type."""

    fields: dict[str, Any]

    def require(self, key: str) -> Any:
        """The value; raises InvalidRequest if the file has no such key."""
        if key not in self.fields:
            raise InvalidRequest(f"the GGUF file lacks {key!r}")
        return self.fields[key]

    def size(self, key: str) -> int:
        """A count or size of the architecture, e.g. `size("block_count")`."""
        return int(self.require(f"{self.architecture}.{key}"))

    def number(self, key: str) -> float:
        """A real number of the architecture."""
        return float(self.require(f"{self.architecture}.{key}"))

    @property
    def architecture(self) -> str:
        """What GGUF calls the model family."""
        return str(self.require("general.architecture"))


def convert_gguf(source: Path, target: Path, on_tensor: Callable[[int, int], None]) -> None:
    """Fill the directory `target` with config, weights (bfloat16), tokenizer and generation config.

    `on_tensor(done, total)` reports progress. Raises InvalidRequest for a model that is not known.
    """
    reader = GGUFReader(source)
    metadata = Metadata({name: field.contents() for name, field in reader.fields.items()})
    vocabulary = read_vocabulary(metadata)
    config, block_names, transform = _architecture(metadata, vocabulary, has_head=_has_head(reader))
    target.mkdir(parents=True, exist_ok=True)
    save_weights(target / "model.safetensors", list(reader.tensors), block_names, transform, on_tensor)
    _write_json(target / "config.json", config)
    _write_json(target / "generation_config.json", _generation_config(vocabulary))
    _write_json(target / "tokenizer.json", tokenizer_json(vocabulary))
    _write_json(target / "tokenizer_config.json", tokenizer_config(vocabulary, config["max_position_embeddings"]))


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """The tokenizer section; raises InvalidRequest naming a key that is missing."""
    fields, prefix = metadata.fields, "tokenizer.ggml."
    tokens = cast("list[str]", metadata.require(prefix + "tokens"))
    eos_id = int(metadata.require(prefix + "eos_token_id"))
    return Vocabulary(
        model=str(metadata.require(prefix + "model")),
        tokens=tokens,
        kinds=metadata.require(prefix + "token_type"),
        scores=fields.get(prefix + "scores", []),
        merges=fields.get(prefix + "merges", []),
        bos_id=int(metadata.require(prefix + "bos_token_id")),
        eos_id=eos_id,
        unk_id=int(metadata.require(prefix + "unknown_token_id")),
        pad_id=int(fields.get(prefix + "padding_token_id", eos_id)),
        adds_bos=bool(fields.get(prefix + "add_bos_token", False)),
        chat_template=fields.get("tokenizer.chat_template"),
    )


def _architecture(
    metadata: Metadata, vocabulary: Vocabulary, has_head: bool
) -> tuple[dict[str, Any], dict[str, str], Transform]:
    """The config, the names of a block's tensors and how their values change."""
    shared = _shared_config(metadata, vocabulary, has_head)
    match metadata.architecture:
        case "gemma3":
            return {**shared, **_gemma_config(metadata)}, GEMMA_NAMES, gemma_transform
        case "llama":
            transform = llama_transform(shared["num_attention_heads"], shared["num_key_value_heads"])
            return {**shared, **_llama_config(metadata)}, LLAMA_NAMES, transform
        case other:
            raise InvalidRequest(f"architecture {other!r} cannot be converted; known: 'gemma3', 'llama'")


def _shared_config(metadata: Metadata, vocabulary: Vocabulary, has_head: bool) -> dict[str, Any]:
    return {
        "dtype": "bfloat16",
        "transformers_version": "5.17.0",  # unnamed, some versions take the tokenizer for an old, broken one
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": metadata.size("embedding_length"),
        "intermediate_size": metadata.size("feed_forward_length"),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": metadata.size("attention.head_count"),
        "num_key_value_heads": metadata.size("attention.head_count_kv"),
        "max_position_embeddings": metadata.size("context_length"),
        "rms_norm_eps": _short(metadata.number("attention.layer_norm_rms_epsilon")),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": not has_head,
        "use_cache": True,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }


def _gemma_config(metadata: Metadata) -> dict[str, Any]:
    num_layers, head_dim = metadata.size("block_count"), metadata.size("attention.key_length")
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": head_dim,
        # Right for the small models; only the 27B scales queries by another number.
        "query_pre_attn_scalar": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": metadata.size("attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (layer + 1) % GEMMA_GLOBAL_LAYER_EVERY else "full_attention"
            for layer in range(num_layers)
        ],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": GEMMA_LOCAL_ROPE_THETA},
        },
    }


def _llama_config(metadata: Metadata) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "head_dim": metadata.size("embedding_length") // metadata.size("attention.head_count"),
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base")},
    }


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
        "do_sample": True,
    }


def _has_head(reader: GGUFReader) -> bool:
    return any(tensor.name == "output.weight" for tensor in reader.tensors)


def _short(value: float) -> float:
    """The decimal number that was meant: GGUF keeps 1e-6 as the nearest float32."""
    return float(f"{value:.6g}")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=None if "model" in content else 2))
