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

from openrl.errors import InvalidRequest

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load_causal_lm(path: Path, config: Any, dtype: torch.dtype, attention: str, device: torch.device) -> Any:
    """The model of a Hugging Face directory, on the host; `attention` names its attention function."""
    options = {"config": config, "dtype": dtype, "attn_implementation": attention}
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # pyright: ignore[reportUnknownMemberType]
    files = weight_files(path)
    if not files:
        names = f"{SINGLE_FILE} or {INDEX_FILE}"
        raise InvalidRequest(f"{path} holds no {names}; weights in other formats are not read, as they may run code")
    is_plain = isinstance(model_class, type) and config.get_text_config() is config
    if device.type != "cpu" or not is_plain:
        return AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False, **options)
    tensors: dict[str, Any] = {}
    for file in files:
        opened: Any = safe_open(str(file), framework="pt", backend="pread")
        tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    causal_lm: Any = model_class.from_pretrained(None, state_dict=tensors, **options)
    if (path / "generation_config.json").exists():
        causal_lm.generation_config = GenerationConfig.from_pretrained(path)
    return causal_lm


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint; none where it has another format.

    Raises InvalidRequest for an index that names others, or files elsewhere.
    """
    if (path / INDEX_FILE).exists():
        names: dict[str, str] = json.loads((path / INDEX_FILE).read_text())["weight_map"]
        for name in names.values():
            if not name.endswith(".safetensors") or "/" in name or "\0" in name:
                raise InvalidRequest(
                    f"{path / INDEX_FILE} names {name[:100]!r}, which is no safetensors file beside it"
                )
        return [path / name for name in sorted(set(names.values()))]
    return [path / SINGLE_FILE] if (path / SINGLE_FILE).exists() else []
