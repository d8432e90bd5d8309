"""A tiny random chat model that ends its turns, and the directory in which recipes find it offline."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SERVED_NAME = "Qwen/Qwen3-8B:tiny"
"""Recipes choose tokenizer and renderer by what stands before the colon."""
FIXED_NAMES = ("Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.6-35B-A3B")
"""Models that some recipes ask for whatever their options say."""
CONTEXT_LENGTH = 16384

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
STOP_PROBABILITY = 0.08


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus the chat format's own tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def save_chat_model(directory: Path) -> Path:
    """Write a two-layer Qwen3 whose next-token distribution is flat but for its stop token."""
    tokenizer = byte_tokenizer()
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        eos_token_id=stop,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # Dimension 0 of every hidden state is large and positive; the head reads only the stop token from it.
        model.model.embed_tokens.weight[:, 0] = 4.0
        model.lm_head.weight.normal_(0.0, 3.0)
        model.lm_head.weight[:, 0] = 0.0
        probe = torch.arange(200)[None]
        hidden = model.model(probe).last_hidden_state[0, :, 0].mean()
        others = torch.logsumexp(model(probe).logits[0, :, :stop].float(), -1).mean()
        wanted = others + torch.logit(torch.tensor(STOP_PROBABILITY))
        model.lm_head.weight[stop] = 0.0
        model.lm_head.weight[stop, 0] = wanted / hidden
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_tokenizers(root: Path) -> None:
    """Write the tokenizer where recipes look for those of the served models: below the directory they start in."""
    for name in ("Qwen/Qwen3-8B", *FIXED_NAMES):
        byte_tokenizer().save_pretrained(root / name)
        (root / name / "config.json").write_text('{"model_type": "qwen3"}')
