"""What a vLLM server computes, the slow way: a plain transformers model, adapters merged in by PEFT, no cache.

Sampling, penalties, cuts and log-probabilities follow vLLM's documentation of SamplingParams and of --logprobs-mode.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Place:
    """A token with the log-probabilities of its place."""

    token: int
    logprobs_V: torch.Tensor

    def listed(self, k: int) -> list[tuple[int, float, int]]:
        """The token itself first, then the k likeliest: id, log-probability, rank."""
        own = float(self.logprobs_V[self.token])
        rank = int((self.logprobs_V > own).sum()) + 1
        values, ids = torch.topk(self.logprobs_V, k)
        likeliest = [(int(i), float(v), place + 1) for place, (i, v) in enumerate(zip(ids, values, strict=True))]
        return [(self.token, own, rank), *[each for each in likeliest if each[0] != self.token]]


@dataclass(frozen=True)
class Continuation:
    places: list[Place]
    finish_reason: str
    stop_reason: int | str | None


class PlainModel:
    """A base model and its adapters by name; used from one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._models: dict[str | None, Any] = {None: self._load()}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.vocab_size = int(self._models[None].config.vocab_size)
        self.max_model_len = int(self._models[None].config.max_position_embeddings)

    def load_adapter(self, name: str, path: str) -> None:
        self._models[name] = PeftModel.from_pretrained(self._load(), path).merge_and_unload().eval()

    def unload_adapter(self, name: str) -> None:
        del self._models[name]

    @torch.no_grad()
    def score(self, name: str | None, prompt: list[int]) -> list[Place | None]:
        """Of each token of a prompt, by the model itself at temperature 1; the first has none."""
        logprobs_TV = torch.log_softmax(self._logits(name, prompt), -1)
        return [None, *[Place(token, logprobs_TV[i]) for i, token in enumerate(prompt[1:])]]

    @torch.no_grad()
    def continuation(
        self, name: str | None, prompt: list[int], body: dict[str, Any], seed: int, raw: bool
    ) -> Continuation:
        """One sample as `body` asks for it; `raw`: log-probabilities of --logprobs-mode raw_logprobs."""
        generator = torch.Generator().manual_seed(seed)
        tokens = list(prompt)
        places: list[Place] = []
        while True:
            logits_V = self._logits(name, tokens)[-1]
            processed_V = self._processed(logits_V, tokens, len(prompt), body)
            if body["temperature"] < 1e-5:
                token = int(processed_V.argmax())
            else:
                noise_V = torch.empty_like(processed_V).exponential_(generator=generator)
                token = int((torch.softmax(processed_V, -1) / noise_V).argmax())
            tokens.append(token)
            places.append(Place(token, torch.log_softmax(logits_V if raw else processed_V, -1)))
            if token in body["stop_token_ids"]:
                return Continuation(places, "stop", token)
            generated = tokens[len(prompt) :]
            text = self.tokenizer.decode(generated, skip_special_tokens=body["skip_special_tokens"])
            found = next((stop for stop in body["stop"] if stop in text), None)
            if found is not None:
                return Continuation(places, "stop", found)
            if len(generated) >= body["max_tokens"] or len(tokens) >= self.max_model_len:
                return Continuation(places, "length", None)

    def _load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._directory, dtype=torch.float32).eval()

    def _logits(self, name: str | None, tokens: list[int]) -> torch.Tensor:
        return self._models[name](torch.tensor([tokens])).logits[0]

    def _processed(
        self, logits_V: torch.Tensor, tokens: list[int], num_prompt: int, body: dict[str, Any]
    ) -> torch.Tensor:
        logits_V = logits_V.clone()
        if body["allowed_token_ids"] is not None:
            mask_V = torch.ones_like(logits_V, dtype=torch.bool)
            mask_V[body["allowed_token_ids"]] = False
            logits_V[mask_V] = -torch.inf
        seen = torch.tensor(sorted(set(tokens)))
        factor = body["repetition_penalty"]
        logits_V[seen] = torch.where(logits_V[seen] > 0, logits_V[seen] / factor, logits_V[seen] * factor)
        for token in tokens[num_prompt:]:
            logits_V[token] -= body["frequency_penalty"]
        for token in set(tokens[num_prompt:]):
            logits_V[token] -= body["presence_penalty"]
        if body["temperature"] < 1e-5:
            return logits_V
        logits_V = logits_V / max(body["temperature"], 0.01)
        probabilities_V = torch.softmax(logits_V, -1)
        logits_V[probabilities_V < body["min_p"] * probabilities_V.max()] = -torch.inf
        if body["top_k"] > 0:
            logits_V[logits_V < torch.topk(logits_V, body["top_k"]).values[-1]] = -torch.inf
        if body["top_p"] < 1.0:
            sorted_V, ids_V = torch.sort(torch.softmax(logits_V, -1), descending=True)
            is_out_V = sorted_V.cumsum(-1) - sorted_V >= body["top_p"]
            is_out_V[0] = False
            logits_V[ids_V[is_out_V]] = -torch.inf
        return logits_V
