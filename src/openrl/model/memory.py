"""Large tables of zeros that take memory only where they are used."""

import math

import numpy as np
import torch
from torch import Tensor


def lazy_zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the host, pages are taken from the system when they are first written.

    torch.zeros writes its zeros: 64 adapter slots of which 8 are used would cost the memory of 64.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = math.prod(size) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(size)
