"""Adapters in our files, and how far another program's log-probabilities under them are from ours (contract 35)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from bench.models import run_spec, state_of
from bench.train import open_engine
from openrl.errors import RequestFailed
from openrl.model.adapter import AdapterWeights, LoraPair, adapted_names
from openrl.model.base_model import ATTENTION_NAME, BaseModel, ModelSource, create_base_model, register_attention
from openrl.model.peft_files import adapter_files, read_adapter
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.runs import RunSpec
from openrl.training.base import finish_pass

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True, "head_dim": 128, "num_key_value_heads": 8}),
    "llama": (LlamaConfig, {"tie_word_embeddings": False, "num_key_value_heads": 4}),
}
SIZES: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SPECS: dict[str, RunSpec] = {
    "layers": run_spec(1, 32),
    "mlp": replace(run_spec(2, 8), train_attn=False),
    "unembed": replace(run_spec(3, 16), train_unembed=True),
}


def write_model(family: str, directory: Path, tiny: bool) -> None:
    """A small model with random weights, without tokenizer, in bf16 (tiny: fp32)."""
    make, shape = FAMILIES[family]
    torch.manual_seed(0)
    dtype = torch.float32 if tiny else torch.bfloat16
    causal_lm: Any = AutoModelForCausalLM.from_config(make(**{**SIZES, **shape, **(TINY if tiny else {})}), dtype=dtype)
    causal_lm.save_pretrained(directory)


def load(directory: Path, dtype: torch.dtype) -> BaseModel:
    """Our model, on CUDA where there is a GPU."""
    register_attention()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=ATTENTION_NAME)
    return create_base_model(ModelSource("peer", directory, device, dtype), causal_lm, None)


def write_adapter(model: BaseModel, spec: RunSpec, directory: Path) -> None:
    """An adapter that changes what the model says, as the files that the server exports."""
    generator = torch.Generator().manual_seed(spec.seed)
    pairs: dict[str, LoraPair] = {}
    for name in adapted_names(spec, model.linear_shapes):
        num_inputs, num_outputs = model.linear_shapes[name]
        a_RD = torch.randn(spec.rank, num_inputs, generator=generator) / num_inputs**0.5
        pairs[name] = LoraPair(a_RD, torch.randn(num_outputs, spec.rank, generator=generator) * 0.02)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in adapter_files(AdapterWeights(spec.rank, pairs), str(model.path)).items():
        (directory / name).write_bytes(content)


def read(model: BaseModel, directory: Path) -> AdapterWeights:
    """The adapter in a directory."""
    return read_adapter({file.name: file.read_bytes() for file in directory.iterdir()}, model.linear_shapes)


def our_logprobs(
    model: BaseModel, spec: RunSpec | None, adapter: AdapterWeights | None, sequences: Sequence[Sequence[int]]
) -> list[np.ndarray[Any, Any]]:
    """Log-probabilities of every token but the first of each sequence, from the training engine's forward pass."""
    engine = open_engine(model, [], 1)
    engine.open_run(replace(spec or run_spec(0), run_id="run"), None if adapter is None else state_of(adapter))
    data: list[Datum] = []
    for sequence in sequences:
        tokens = np.array(sequence)
        inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)}
        data.append(Datum(tokens[:-1].astype(np.int32), inputs))
    job = ForwardBackwardInput("run", 1, tuple(data), "cross_entropy", {}, True)
    (result,) = finish_pass(engine.forward_backward([job]))
    if isinstance(result, RequestFailed):
        raise result
    return [output["logprobs"] for output in result.outputs]


def peft_logprobs(
    directory: Path, adapter: Path | None, dtype: torch.dtype, sequences: Sequence[Sequence[int]]
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """The same from transformers and PEFT, and the likeliest token at every place."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    causal_lm: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    nn.Module.to(causal_lm, device)
    if adapter is not None:
        causal_lm = PeftModel.from_pretrained(causal_lm, str(adapter))
    logprobs: list[Any] = []
    likeliest: list[Any] = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)], device=device)
        with torch.no_grad():
            logits_TV = causal_lm.eval()(ids).logits[0, :-1].float()
        logprobs.append(torch.log_softmax(logits_TV, -1).gather(1, ids[0, 1:, None])[:, 0].cpu().numpy())
        likeliest.append(logits_TV.argmax(-1).cpu().numpy())
    return logprobs, likeliest


def distance(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, float]:
    """Mean and largest absolute difference."""
    d = np.abs(np.concatenate(list(ours)).astype(np.float64) - np.concatenate(list(theirs)))
    return {"mean_abs": float(d.mean()), "max_abs": float(d.max()), "tokens": len(d)}


def compare(directory: Path, kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A peer's log-probabilities `found` of its own sequences, beside ours and PEFT's in fp32 and ours in bf16.

    `unembed_ignored`: ours without the head's factors, in case the peer drops them.
    """
    sequences, theirs = found["sequences"], found["logprobs"]
    adapter_dir = None if kind == "base" else directory / kind
    spec = SPECS.get(kind)
    distances: dict[str, Any] = {}
    exact: list[Any] = []
    for dtype in (torch.float32, torch.bfloat16) if torch.cuda.is_available() else (torch.float32,):
        model = load(directory / "model", dtype)
        adapter = None if adapter_dir is None else read(model, adapter_dir)
        ours = our_logprobs(model, spec, adapter, sequences)
        exact = exact or ours
        name = str(dtype).removeprefix("torch.")
        distances[f"peer - ours {name}"] = distance(ours, theirs)
        distances[f"ours {name} - ours float32"] = distance(exact, ours)
        if kind == "unembed" and adapter is not None and dtype == torch.float32:
            layers = AdapterWeights(adapter.rank, {n: p for n, p in adapter.pairs.items() if n != "lm_head"})
            body = our_logprobs(model, replace(SPECS[kind], train_unembed=False), layers, sequences)
            distances["unembed_ignored"] = distance(body, theirs)
    peft, likeliest = peft_logprobs(directory / "model", adapter_dir, torch.float32, sequences)
    distances["peft float32 - ours float32"] = distance(exact, peft)
    start = found["prompt_tokens"] - 1
    same = [np.array(s[start + 1 :]) == best[start:] for s, best in zip(sequences, likeliest, strict=True)]
    return {**distances, "greedy_agreement": float(np.concatenate(same).mean())}
