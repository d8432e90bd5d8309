"""Adapters as PEFT directories: what PEFT, vLLM and Hugging Face tools read."""

import json
from typing import Any

import safetensors.torch
import torch

from openrl.errors import InvalidRequest
from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.model.checked_tensors import load_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
_MAX_RANK = 2**16
_MAX_ALPHA = 2**20
_OTHER_FORMULAS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
"""Settings of PEFT that change what the factors mean."""


def adapter_files(adapter: AdapterWeights, base_model: str) -> dict[str, bytes]:
    """The two files of a PEFT adapter; `base_model`: name or path that PEFT's users load it onto."""
    tensors: dict[str, torch.Tensor] = {}
    for name, pair in adapter.pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a_RD.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b_OR.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in adapter.pairs}),
    }
    return {
        WEIGHTS_FILE: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: json.dumps(config, indent=2).encode(),
    }


def read_adapter(files: dict[str, bytes], shapes: dict[str, tuple[int, int]]) -> AdapterWeights:
    """The adapter in a PEFT directory; raises InvalidRequest where it does not fit the model's linears.

    `shapes`: see BaseModel.linear_shapes.
    """
    config = _read_config(files)
    rank, alpha = config["r"], float(config["lora_alpha"])
    tensors = load_tensors(files, WEIGHTS_FILE)
    pairs: dict[str, LoraPair] = {}
    for key in tensors:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if key.startswith(PREFIX) and key.endswith(".lora_A.weight"):
            pairs[name] = _pair(name, tensors, rank, shapes)
    if 2 * len(pairs) != len(tensors):
        unpaired = sorted(key for key in tensors if not key.endswith((".lora_A.weight", ".lora_B.weight")))
        raise InvalidRequest(f"{WEIGHTS_FILE} holds tensors that are not LoRA factors: {unpaired[:3]}")
    return AdapterWeights(rank=rank, pairs={name: pairs[name] for name in shapes if name in pairs}, alpha=alpha)


def _read_config(files: dict[str, bytes]) -> dict[str, Any]:
    try:
        config = json.loads(files[CONFIG_FILE])
    except (KeyError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{CONFIG_FILE} is missing or damaged: {error}") from error
    if not isinstance(config, dict):
        raise InvalidRequest(f"{CONFIG_FILE} is damaged: it holds no object")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= _MAX_RANK:
        raise InvalidRequest(f"{CONFIG_FILE}: r is {str(rank)[:40]}; it must be a whole number from 1 to {_MAX_RANK}")
    if not isinstance(alpha, int | float) or not 0 < alpha <= _MAX_ALPHA:
        raise InvalidRequest(f"{CONFIG_FILE}: lora_alpha is {str(alpha)[:40]}; it must be from 0 to {_MAX_ALPHA}")
    other = [name for name in _OTHER_FORMULAS if config.get(name)]
    if other:
        raise InvalidRequest(f"{CONFIG_FILE} sets {', '.join(other)}, which adapters here do not have")
    return config


def _pair(name: str, tensors: dict[str, torch.Tensor], rank: int, shapes: dict[str, tuple[int, int]]) -> LoraPair:
    if name not in shapes:
        raise InvalidRequest(f"the adapter trains {name!r}, which the base model does not have")
    num_inputs, num_outputs = shapes[name]
    a_RD = tensors[f"{PREFIX}{name}.lora_A.weight"]
    b_OR = tensors.get(f"{PREFIX}{name}.lora_B.weight", torch.empty(0))
    if not (a_RD.is_floating_point() and b_OR.is_floating_point()):
        raise InvalidRequest(f"{name}: factors are of {a_RD.dtype} and {b_OR.dtype}; they must be real numbers")
    expected = ((rank, num_inputs), (num_outputs, rank))
    if (tuple(a_RD.shape), tuple(b_OR.shape)) != expected:
        raise InvalidRequest(
            f"{name}: factors have shapes {tuple(a_RD.shape)} and {tuple(b_OR.shape)}; "
            f"expected {expected[0]} and {expected[1]}"
        )
    return LoraPair(a_RD.float(), b_OR.float())
