"""A tiny model that writes moves of tic-tac-toe: "[", a digit, "]", and the end of the line."""

from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM

from tests.cookbook.chat_model import byte_tokenizer, save_chat_model

PLAYER_NAME = "Qwen/Qwen3-8B:player"

_NEXT = {"[": "012345678", **dict.fromkeys("012345678", "]"), "]": "\n"}
"""What follows a symbol of a move; after anything else a move begins."""
_START = "["
_LOUD = 24.0


def save_player_model(directory: Path) -> Path:
    """Write the chat model with a head that reads the last token from the first dimensions of its embedding."""
    save_chat_model(directory)
    model = Qwen3ForCausalLM.from_pretrained(directory)
    tokenizer = byte_tokenizer()
    successors = sorted({_START, *_NEXT.values()})
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        head = model.lm_head.weight
        embedding[:, : len(successors)] = 0.0
        head.normal_(0.0, 0.1)
        embedding[:, successors.index(_START)] = _LOUD
        for symbol, successor in _NEXT.items():
            token = tokenizer.encode(symbol)[0]
            embedding[token, : len(successors)] = 0.0
            embedding[token, successors.index(successor)] = _LOUD
        for dimension, successor in enumerate(successors):
            head[:, dimension] = 0.0
            head[tokenizer.encode(successor), dimension] = 2.0
    model.save_pretrained(directory)
    return directory
