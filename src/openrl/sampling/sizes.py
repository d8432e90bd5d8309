"""Turns the automatic values of a SamplingConfig into numbers for one device."""

from dataclasses import dataclass

import torch

from openrl.config import SamplingConfig
from openrl.errors import InvalidRequest
from openrl.model.base_model import BaseModel
from openrl.sampling.kv_cache import bytes_per_block

CPU_CACHE_BYTES = 2**29
CUDA_CACHE_SHARE = 0.3
CUDA_BURST_S = 0.05

CPU_IDLE_SHARE = 0.25
"""Share of the cache that may hold prefixes nobody uses while other pages have never been written."""


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """How much a sampling engine holds and does at once."""

    max_sequences: int
    prefill_tokens: int
    num_blocks: int
    max_idle_blocks: int
    block_tokens: int
    num_adapters: int
    max_slowdown: float
    burst_s: float


def resolve_sizes(model: BaseModel, config: SamplingConfig) -> EngineSizes:
    """The sizes for `model` on its device; raises InvalidRequest where the cache has no room for a block."""
    is_cuda = model.device.type == "cuda"
    block_bytes = bytes_per_block(
        model.num_layers, config.block_tokens, model.num_kv_heads, model.head_dim, model.dtype
    )
    cache_bytes = config.cache_bytes or _automatic_cache_bytes(model.device)
    if cache_bytes < block_bytes:
        raise InvalidRequest(f"sampling.cache_bytes is {cache_bytes}; one block of the KV cache needs {block_bytes}")
    num_blocks = cache_bytes // block_bytes
    return EngineSizes(
        max_sequences=config.max_sequences or (256 if is_cuda else 32),
        prefill_tokens=config.prefill_tokens or (8192 if is_cuda else 512),
        num_blocks=num_blocks,
        max_idle_blocks=num_blocks if is_cuda else int(num_blocks * CPU_IDLE_SHARE),
        block_tokens=config.block_tokens,
        num_adapters=config.resident_adapters,
        max_slowdown=config.max_slowdown,
        burst_s=(CUDA_BURST_S if is_cuda else 0.0) if config.burst_s is None else config.burst_s,
    )


def _automatic_cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_CACHE_BYTES
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int(free_bytes * CUDA_CACHE_SHARE)
