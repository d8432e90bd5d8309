"""Reads safetensors whose header says the truth about what follows it.

Adapters and optimizer states come through here, whoever wrote the files. Nothing is allocated by a number that the
header gives before it agrees with the size of the file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import safetensors
import safetensors.torch
import torch

from openrl.errors import InvalidRequest

MAX_HEADER_BYTES = 2**24
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 4
_ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def load_tensors(files: Mapping[str, bytes], name: str, *, is_finite: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of one file; raises InvalidRequest where it is missing or damaged, or holds what it must not.

    `is_finite`: refuse NaN and infinities.
    """
    if name not in files:
        raise InvalidRequest(f"{name} is missing")
    data = files[name]
    _check_header(data, name)
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InvalidRequest(f"{name} is damaged: {error}") from error
    for key, tensor in tensors.items():
        if is_finite and tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # takes no memory, and both are NaN where one entry is
            if not (math.isfinite(low.item()) and math.isfinite(high.item())):
                raise InvalidRequest(f"{name}: {key[:100]!r} holds values that are not finite")
    return tensors


def _check_header(data: bytes, name: str) -> None:
    """Raises InvalidRequest unless the tensors lie in the file end to end, each of the size of its shape."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    num_rest = len(data) - _LENGTH_BYTES - length
    if length > MAX_HEADER_BYTES or num_rest < 0:
        raise InvalidRequest(f"{name} is damaged: its header of {length} bytes does not fit its {len(data)}")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length], object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is damaged: its header is no JSON object of distinct names") from error
    if not isinstance(header, dict):
        raise InvalidRequest(f"{name} is damaged: its header is no JSON object")
    header.pop("__metadata__", None)  # texts for people, which nothing here reads
    stretches = sorted(_stretch(entry, f"{name}: {key[:100]!r}") for key, entry in header.items())
    bounds = [(0, 0), *stretches, (num_rest, num_rest)]
    for (_, end), (start, _) in pairwise(bounds):
        if end != start:
            raise InvalidRequest(f"{name} is damaged: a tensor ends at byte {end} and the next starts at {start}")


def _stretch(entry: Any, where: str) -> tuple[int, int]:
    """Where a tensor lies."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidRequest(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise InvalidRequest(f"{where} has dtype {str(dtype)[:20]!r}; it must be one of {', '.join(_ITEM_BYTES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise InvalidRequest(f"{where} has shape {str(shape)[:100]}; it must be up to {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise InvalidRequest(f"{where} has data_offsets {str(offsets)[:100]}; they must be two places in the file")
    start, end = offsets
    num_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - start != num_bytes:
        raise InvalidRequest(f"{where} has {end - start} bytes; its shape {shape} takes {num_bytes}")
    return start, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal names they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found
