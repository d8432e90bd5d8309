"""Triton's interpreter where it falls short: a numpy that is strict (2.4), and products of bf16."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from triton.runtime import interpreter


def repair_interpreter() -> None:
    """Loop bounds of kernels are arrays of one element; bf16 is kept as the upper halves of fp32."""
    patch: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", index)

    def index(value: Any) -> int:
        return int(value.handle.data.item())

    def dot(builder: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return interpreter.TensorHandle(np.matmul(_widened(a), _widened(b)) + d.data, d.dtype.scalar)

    interpreter._patch_lang_tensor = patched
    builder: Any = interpreter.InterpreterBuilder
    builder.create_dot = dot


def _widened(handle: Any) -> NDArray[np.float32]:
    data = handle.data
    return (data.astype(np.uint32) << 16).view(np.float32) if data.dtype == np.uint16 else data.astype(np.float32)
