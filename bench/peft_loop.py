"""The twin of bench.cpu: plain transformers and PEFT, one adapter after the other."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class PeftLoop:
    """One base model, one PEFT adapter per run."""

    def __init__(self, path: Path, num_runs: int, rank: int) -> None:
        base: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0)
        self.model: Any = get_peft_model(base, config, adapter_name="0")
        for run in range(1, num_runs):
            self.model.add_adapter(str(run), config)
        self.vocab_size = int(base.config.get_text_config().vocab_size)

    def train(self, sequences: list[list[int]], completions: list[int], per_run: int) -> int:
        """Forward and backward of every run's padded batch; returns real tokens."""
        for run in range(len(sequences) // per_run):
            self.model.set_adapter(str(run))
            chosen = slice(run * per_run, (run + 1) * per_run)
            tokens, mask = padded(sequences[chosen], left=False)
            logits = self.model(input_ids=tokens[:, :-1], attention_mask=mask[:, :-1]).logits
            logprobs = torch.log_softmax(logits.float(), -1).gather(2, tokens[:, 1:, None])[..., 0]
            weights = torch.zeros_like(logprobs)
            for row, (sequence, completion) in enumerate(zip(sequences[chosen], completions[chosen], strict=True)):
                weights[row, len(sequence) - 1 - completion : len(sequence) - 1] = 1.0
            (-(weights * logprobs).sum()).backward()
        return sum(len(s) for s in sequences)

    def sample(self, prompts: list[list[int]], per_run: int, new_tokens: int) -> int:
        """Generate for every run's padded batch of prompts; returns generated tokens."""
        for run in range(len(prompts) // per_run):
            self.model.set_adapter(str(run))
            tokens, mask = padded(prompts[run * per_run : (run + 1) * per_run], left=True)
            with torch.no_grad():
                self.model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    min_new_tokens=new_tokens,
                    max_new_tokens=new_tokens,
                )
        return len(prompts) * new_tokens


def padded(sequences: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, longest]."""
    longest = max(len(s) for s in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        tokens[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return tokens, mask
