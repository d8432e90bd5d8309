"""Loads a model's weights from its safetensors files tensor by tensor.

transformers maps the files into memory: on a CPU host all of a checkpoint then counts as the process's memory beside
the weights made from it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load_causal_lm(path: Path, config: Any, dtype: torch.dtype, attention: str, device: torch.device) -> Any:
    """The model of a Hugging Face directory, on the host; `attention` names its attention function."""
    options = {"config": config, "dtype": dtype, "attn_implementation": attention}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # pyright: ignore[reportUnknownMemberType]
    files = weight_files(path)
    is_plain = isinstance(model_class, type) and config.get_text_config() is config
    if device.type != "cpu" or not files or not is_plain:
        return AutoModelForCausalLM.from_pretrained(path, **options)
    tensors: dict[str, Any] = {}
    for file in files:
        opened: Any = safe_open(str(file), framework="pt", backend="pread")
        tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    causal_lm: Any = model_class.from_pretrained(None, state_dict=tensors, **options)
    if (path / "generation_config.json").exists():
        causal_lm.generation_config = GenerationConfig.from_pretrained(path)
    return causal_lm


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint; none where it has another format."""
    if (path / INDEX_FILE).exists():
        names: dict[str, str] = json.loads((path / INDEX_FILE).read_text())["weight_map"]
        return [path / name for name in sorted(set(names.values()))]
    return [path / SINGLE_FILE] if (path / SINGLE_FILE).exists() else []
