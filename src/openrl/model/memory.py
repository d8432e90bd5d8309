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


def clear_lazily(part: Tensor) -> None:
    """Zero a contiguous part of a table of `lazy_zeros`; on the host its whole pages go back to the system."""
    if part.device.type != "cpu" or not hasattr(mmap, "MADV_DONTNEED"):
        part.zero_()
        return
    flat = part.view(-1).view(torch.uint8)
    start = flat.data_ptr()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = (start + flat.numel()) // mmap.PAGESIZE * mmap.PAGESIZE - first
    # A private page that is given back reads as zeros when it is touched again.
    if num_bytes <= 0 or _madvise(first, num_bytes, mmap.MADV_DONTNEED):
        flat.zero_()
        return
    flat[: first - start].zero_()
    flat[first + num_bytes - start :].zero_()


def _madvise(start: int, num_bytes: int, advice: int) -> int:
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), advice)


def release_freed_memory() -> None:
    """Give what has been freed back to the system, where the C library can (glibc).

    Reading the tokenizer of a large vocabulary leaves some 270 MiB that nothing uses.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
