"""Proves that the trained adapter works outside the server: PEFT gives the same log-probabilities."""

import io
import tarfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-3
"""Largest difference of a log-probability for a server that computes in float32."""
BFLOAT16_TOLERANCE = 0.1
"""Largest mean difference for a server that computes in bfloat16. transformers in bfloat16 is 0.04 from float32
(Gemma 3 270M without adapter, on such prompts)."""


@dataclass(frozen=True, slots=True)
class Portability:
    """How far PEFT and the server are apart on the same tokens."""

    max_difference: float
    mean_difference: float
    num_tokens: int

    @property
    def verdict(self) -> str:
        """What the differences say about the server's log-probabilities."""
        if self.max_difference <= TOLERANCE:
            return "the same as"
        if self.mean_difference <= BFLOAT16_TOLERANCE:
            return "as close as bfloat16 is to"
        return "NOT the same as"


def download_adapter(base_url: str, api_key: str, tinker_path: str, target: Path) -> Path:
    """Fetch a sampler checkpoint (`tinker://run/sampler_weights/name`) and unpack it."""
    run_id, checkpoint = tinker_path.removeprefix("tinker://").split("/", 1)
    url = f"{base_url.rstrip('/')}/api/v1/training_runs/{run_id}/checkpoints/{checkpoint}/archive"
    request = urllib.request.Request(url, headers={"X-API-Key": api_key})
    with urllib.request.urlopen(request, timeout=120) as reply:
        content = reply.read()
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(target, filter="data")
    return target


def compare(
    sampler: tinker.SamplingClient, base_dir: Path, adapter_dir: Path, sequences: Sequence[list[int]]
) -> Portability:
    """Log-probabilities of the sequences from the server and from PEFT on the same base model."""
    futures = [sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens)) for tokens in sequences]
    theirs = _peft_logprobs(base_dir, adapter_dir, sequences)
    differences = [
        abs(ours - other)
        for future, others in zip(futures, theirs, strict=True)
        for ours, other in zip(future.result()[1:], others, strict=True)
        if ours is not None
    ]
    return Portability(max(differences), sum(differences) / len(differences), len(differences))


def _peft_logprobs(base_dir: Path, adapter_dir: Path, sequences: Sequence[list[int]]) -> list[list[float]]:
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    with torch.no_grad():
        return [_logprobs(model, torch.tensor(tokens)) for tokens in sequences]


def _logprobs(model: PeftModel, tokens: torch.Tensor) -> list[float]:
    logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, tokens[1:, None])[:, 0].tolist()
