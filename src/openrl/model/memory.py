"""Memory taken from the system late and given back early."""

import ctypes
import math
import mmap

import torch
from torch import Tensor


def lazy_zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the host, pages are taken from the system when they are first written.

    torch.zeros writes its zeros: 64 adapter slots of which 8 are used would cost the memory of 64.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # calloc takes what others have freed where it can, and then writes zeros too: only fresh pages are free of cost.
    # Small pages: what is used of a table is often less than one huge page.
    pages = mmap.mmap(-1, math.prod(size) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(size)


def release_freed_memory() -> None:
    """Give what has been freed back to the system, where the C library can (glibc).

    Reading the tokenizer of a large vocabulary leaves some 270 MiB that nothing uses.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
