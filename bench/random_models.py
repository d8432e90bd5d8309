"""Writes models of real shapes with random weights as Hugging Face directories, for a server to load."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from bench.models import SHAPES, config_of

NAMES = ("tiny", *SHAPES)


def save_random_model(name: str, directory: Path) -> Path:
    """Write it, the same every time; returns the directory."""
    config = config_of("qwen3-4b" if name == "tiny" else name, tiny=name == "tiny")
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        dtype = torch.float32 if name == "tiny" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(directory)
    return directory
