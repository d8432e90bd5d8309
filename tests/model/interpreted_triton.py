"""Triton's interpreter beside a numpy that turns only 0-dimensional arrays into numbers (2.4)."""

from typing import Any

from triton.runtime import interpreter


def accept_scalars_of_one_element() -> None:
    """Loop bounds of interpreted kernels are arrays of one element."""
    patch: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
