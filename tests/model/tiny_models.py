"""Tiny random models of every served family, and batches over them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from openrl.model.attention import PackedAttention
from openrl.model.base_model import BaseModel, ModelSource, load_base_model
from openrl.model.batch import Adapters, Batch, Segment

VOCAB = 515
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def config_of(family: str) -> PreTrainedConfig:
    """A configuration of the family with a few thousand parameters a layer."""
    if family == "llama":
        return LlamaConfig(**SHAPE, tie_word_embeddings=False)
    if family == "qwen2":
        return Qwen2Config(**SHAPE, tie_word_embeddings=True)
    if family == "qwen3":
        return Qwen3Config(**SHAPE, head_dim=24, tie_word_embeddings=False)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(
        **SHAPE, head_dim=24, query_pre_attn_scalar=24, sliding_window=20, layer_types=layers, tie_word_embeddings=True
    )


FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")


def save_tiny_model(family: str, directory: Path) -> Path:
    """Write a random model with norms off their initial ones; returns its directory."""
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.1 if "norm" in name else 0.08)
            if "norm" in name and family != "gemma3":
                parameter.add_(1.0)
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2", pad_token="w0").save_pretrained(directory)
    return directory


def load_tiny(directory: Path) -> BaseModel:
    """Our model over the directory, on the CPU in fp32."""
    return load_base_model(ModelSource("tiny", directory, torch.device("cpu"), torch.float32))


def load_plain(directory: Path) -> Any:
    """The plain transformers twin with its slow, obvious attention."""
    config = AutoConfig.from_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, config=config, attn_implementation="eager").eval()


def packed(
    model: BaseModel,
    sequences: list[list[int]],
    adapters: Adapters | None = None,
    slots: list[int] | None = None,
) -> Batch:
    """Whole sequences side by side, each its own job."""
    segments: list[Segment] = []
    tokens: list[int] = []
    positions: list[int] = []
    for index, sequence in enumerate(sequences):
        slot = -1 if slots is None else slots[index]
        segments.append(Segment(len(tokens), len(sequence), slot, index))
        tokens += sequence
        positions += range(len(sequence))
    padding = [0] * (model.pad_rows(len(tokens)) - len(tokens))
    return Batch(
        torch.tensor(tokens + padding),
        torch.tensor(positions + padding),
        tuple(segments),
        PackedAttention(tuple(segments)),
        adapters,
    )
