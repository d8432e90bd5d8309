"""The slow twin: plain transformers and PEFT over the same directory, in float64."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM


class ReferenceModel:
    """A base model, with an adapter where one is given."""

    def __init__(self, model_dir: Path, adapter_dir: Path | None, dtype: torch.dtype = torch.float64) -> None:
        base: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
        self.model: Any = base
        if adapter_dir is not None:
            self.model = PeftModel.from_pretrained(base, str(adapter_dir), is_trainable=True).to(dtype)
        self.model.eval()

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """[N, V]: of every token after tokens[: n + 1]."""
        return self.model(torch.tensor([list(tokens)])).logits[0]

    def logprobs(self, tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
        """[N, V]: of every token after tokens[: n + 1]."""
        return torch.log_softmax(self.logits(tokens) / temperature, -1)

    def next_token_logprobs(self, tokens: Sequence[int], temperature: float = 1.0) -> list[float]:
        """Of tokens[1:], each after those before it."""
        with torch.no_grad():
            logprobs_NV = self.logprobs(tokens, temperature)
        return logprobs_NV[:-1].gather(1, torch.tensor(list(tokens[1:]))[:, None])[:, 0].tolist()

    def gradients(self) -> dict[str, Tensor]:
        """What backward() has left, by the names of PEFT's files."""
        return {
            name.replace(".default", ""): parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
