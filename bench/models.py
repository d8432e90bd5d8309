"""Base models of real shapes with random weights, made on the device from a configuration: nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3Config

from openrl.model.adapter import AdapterWeights, LoraPair, adapted_names
from openrl.model.base_model import (
    ATTENTION_NAME,
    BaseModel,
    ModelSource,
    create_base_model,
    register_attention,
)
from openrl.model.peft_files import PREFIX
from openrl.protocol.runs import RunSpec
from openrl.training.base import RunState

RANK = 32
QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
SHAPES: dict[str, tuple[type[Qwen3Config] | type[Gemma3TextConfig], dict[str, Any]]] = {
    "qwen3-0.6b": (
        Qwen3Config,
        {
            **QWEN3,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
    ),
    "qwen3-4b": (
        Qwen3Config,
        {
            **QWEN3,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        },
    ),
    "gemma-3-1b": (
        Gemma3TextConfig,
        {
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
}
TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}


def config_of(name: str, tiny: bool) -> Any:
    """The configuration of a named shape; `tiny`: of its family, for a CPU."""
    make, shape = SHAPES[name]
    return make(**{**shape, **(TINY if tiny else {})})


def create_model(
    name: str, tiny: bool, seed: int = 0, is_compiled: bool = True, has_fp32_residual: bool = False
) -> BaseModel:
    """Our model of a shape: on CUDA in bf16 where there is a GPU, else on the CPU in fp32. It has no tokenizer."""
    register_attention()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = config_of(name, tiny)
    torch.manual_seed(seed)
    with device:
        causal_lm: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME)
    compiler = "inductor" if is_compiled and device.type == "cuda" else None
    source = ModelSource(name, Path(name), device, dtype, compiler, has_fp32_residual)
    return create_base_model(source, causal_lm, None)


def run_spec(run: int, rank: int = RANK) -> RunSpec:
    """A run that trains the seven linears of every layer."""
    return RunSpec(f"run{run}", "bench", "bench", rank, run, train_attn=True, train_mlp=True, train_unembed=False)


def random_adapter(model: BaseModel, seed: int, rank: int = RANK) -> AdapterWeights:
    """An adapter on the linears of the layers that changes what the model says; drawn on the device, which is quick."""
    generator = torch.Generator(model.device).manual_seed(seed)
    pairs: dict[str, LoraPair] = {}
    for name in adapted_names(run_spec(seed, rank), model.linear_shapes):
        num_inputs, num_outputs = model.linear_shapes[name]
        a_RD = torch.randn(rank, num_inputs, generator=generator, device=model.device) / num_inputs**0.5
        b_OR = torch.randn(num_outputs, rank, generator=generator, device=model.device) * 0.01
        pairs[name] = LoraPair(a_RD, b_OR)
    return AdapterWeights(rank, pairs)


def state_of(adapter: AdapterWeights) -> RunState:
    """A run that has these weights and has taken no step."""
    named: dict[str, Any] = {}
    for name, pair in adapter.pairs.items():
        named[f"{PREFIX}{name}.lora_A.weight"] = pair.a_RD
        named[f"{PREFIX}{name}.lora_B.weight"] = pair.b_OR
    return RunState(named, {}, {})
