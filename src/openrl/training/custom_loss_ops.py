"""The functions that traced losses call, and how many elements each may put out, told from its arguments.

An output has at most as many elements as its tensor arguments broadcast together, unless `_GROWTH` says otherwise.
Nothing is allocated to find out.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType, MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openrl.protocol.custom_loss_ops import NAMES, Namespace

Value = Any
"""What a graph computes with: tensors, numbers, shapes, tuples of these."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call, before it runs."""

    elements: int  # of its output, at most
    work: int  # scalar operations, about


@dataclass(frozen=True, slots=True)
class Arguments:
    """The values that a call is given."""

    args: tuple[Value, ...]
    kwargs: Mapping[str, Value]

    def get(self, place: int, name: str, default: Value = None) -> Value:
        """An argument by position or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors among the arguments, also those in lists."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple):
                yield from (each for each in value if isinstance(each, Tensor))


Growth = Callable[[Arguments], Cost]


def cost_of(namespace: Namespace, op: str, arguments: Arguments) -> Cost:
    """What the call may take; raises TypeError, ValueError and OverflowError for arguments it cannot have."""
    growth = _GROWTH.get(op)
    if growth is not None and namespace != "math":
        return growth(arguments)
    shapes = [tensor.shape for tensor in arguments.tensors()]
    return _plain(broadcast_elements(shapes))


def broadcast_elements(shapes: Sequence[Sequence[int]]) -> int:
    """At least the number of elements that the shapes broadcast to; shapes that do not are fine."""
    rank = max((len(shape) for shape in shapes), default=0)
    return math.prod(
        max(shape[-place] for shape in shapes if len(shape) >= place) for place in range(1, rank + 1)
    )  # fmt: skip


def power(base: Value, exponent: Value) -> Value:
    """`base ** exponent`; integers stay within 64 bits."""
    if isinstance(base, int) and isinstance(exponent, int) and (abs(base).bit_length() - 1) * exponent > 63:
        raise OverflowError(f"an integer to the power {exponent} is beyond 64 bits")
    return base**exponent


def get_item(container: Value, index: Value) -> Value:
    """`container[index]` of a tensor or a tuple."""
    if not isinstance(container, Tensor | tuple):
        raise TypeError(f"a {type(container).__name__} has no items")
    return container[index]


def get_attribute(value: Value, name: str) -> Value:
    """An attribute of a tensor, or a field of what `max` and the like return."""
    if isinstance(value, Tensor) and name not in ("values", "indices"):
        return _TENSOR_ATTRIBUTES[name](value)
    if isinstance(value, tuple) and name in ("values", "indices"):
        return getattr(value, name)
    raise TypeError(f"a {type(value).__name__} has no attribute {name}")


def _relu(x: Tensor, **_: Value) -> Tensor:
    """Never in place, whatever the keyword says."""
    return torch.relu(x)


def _plain(elements: int) -> Cost:
    return Cost(elements, elements)


def _product(sizes: Sequence[Value]) -> int:
    if not all(isinstance(size, int) for size in sizes):
        raise TypeError("sizes must be integers")
    return math.prod(max(int(size), 0) for size in sizes)


def _sizes(values: Sequence[Value], named: Value) -> Sequence[Value]:
    """Sizes given one by one, or as one tuple or list."""
    if not values and named is not None:
        values = (named,)
    if len(values) == 1 and isinstance(values[0], tuple | list):
        return values[0]
    return values


def _filled(a: Arguments) -> Cost:
    """zeros(*size), zeros(size)."""
    return _plain(_product(_sizes(a.args, a.kwargs.get("size"))))


def _full(a: Arguments) -> Cost:
    return _plain(_product(_sizes(a.args[:1], a.kwargs.get("size"))))


def _new_filled(a: Arguments) -> Cost:
    return _plain(_product(_sizes(a.args[1:], a.kwargs.get("size"))))


def _new_full(a: Arguments) -> Cost:
    return _plain(_product(_sizes(a.args[1:2], a.kwargs.get("size"))))


def _arange(a: Arguments) -> Cost:
    numbers = [number for number in a.args if number is not None]
    start = a.kwargs.get("start", numbers[0] if len(numbers) > 1 else 0)
    end = a.kwargs.get("end", numbers[1] if len(numbers) > 1 else numbers[0] if numbers else 0)
    step = a.kwargs.get("step", numbers[2] if len(numbers) > 2 else 1)
    if not all(isinstance(number, int | float) for number in (start, end, step)):
        raise TypeError("arange takes numbers")
    return _plain(max(0, math.ceil((end - start) / step)) + 1)


def _expand(a: Arguments) -> Cost:
    x: Tensor = a.args[0]
    sizes = _sizes(a.args[1:], a.kwargs.get("size"))
    own = (1,) * (len(sizes) - x.ndim) + tuple(x.shape)
    return _plain(_product([old if size == -1 else size for size, old in zip(sizes, own, strict=True)]))


def _repeat(a: Arguments) -> Cost:
    x: Tensor = a.args[0]
    return _plain(x.numel() * _product(_sizes(a.args[1:], a.kwargs.get("repeats", a.kwargs.get("dims")))))


def _repeat_interleave(a: Arguments) -> Cost:
    repeats = a.get(1, "repeats")
    if not isinstance(repeats, int):
        raise TypeError("repeat_interleave takes one number of repeats")
    return _plain(a.args[0].numel() * max(repeats, 0))


def _joined(a: Arguments) -> Cost:
    return _plain(sum(tensor.numel() for tensor in a.tensors()))


def _matmul(a: Arguments) -> Cost:
    x, y = list(a.tensors())[:2]
    rows, columns = (x.shape[-2] if x.ndim > 1 else 1), (y.shape[-1] if y.ndim > 1 else 1)
    elements = broadcast_elements([x.shape[:-2], y.shape[:-2]]) * rows * columns
    return Cost(elements, elements * max(x.shape[-1] if x.ndim else 1, 1))


def _outer(a: Arguments) -> Cost:
    return _plain(math.prod(tensor.numel() for tensor in a.tensors()))


def _one_hot(a: Arguments) -> Cost:
    num_classes = a.get(1, "num_classes", -1)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"one_hot needs num_classes of at least 1, not {num_classes}")
    return _plain(a.args[0].numel() * num_classes)


def _pad(a: Arguments) -> Cost:
    x, pad = a.args[0], a.get(1, "pad")
    sizes = list(x.shape)
    for place in range(len(pad) // 2):
        sizes[-1 - place] += max(0, pad[2 * place]) + max(0, pad[2 * place + 1])
    return _plain(_product(sizes))


def _index_select(a: Arguments) -> Cost:
    x, dim, index = a.args[0], a.get(1, "dim"), a.get(2, "index")
    return _plain(x.numel() // max(1, x.shape[dim]) * index.numel())


def _pieces(a: Arguments) -> Cost:
    """Views: each costs as much as a small operation."""
    elements = a.args[0].numel()
    return Cost(elements, elements + 2**10 * max((*a.args[0].shape, 1)))


def _get_item(a: Arguments) -> Cost:
    container, index = a.args
    if not isinstance(container, Tensor):
        return _plain(0)
    chosen: list[Sequence[int]] = []  # shapes of the index tensors
    rest, dim = container.numel(), 0
    items = index if isinstance(index, tuple) else (index,)
    consumed = sum(_num_dims(item) for item in items)
    for item in items:
        if isinstance(item, EllipsisType):
            dim += container.ndim - consumed
            continue
        if isinstance(item, list) or (isinstance(item, Tensor) and item.dtype != torch.bool and item.ndim):
            if isinstance(item, list) and any(isinstance(each, list | tuple) for each in item):
                raise TypeError("an index may not be a list of lists")
            chosen.append((len(item),) if isinstance(item, list) else item.shape)
            rest //= max(1, container.shape[dim])
        dim += _num_dims(item)
    return _plain(max(container.numel(), rest * broadcast_elements(chosen)))


def _num_dims(item: Value) -> int:
    """Dimensions that an index takes away from or selects in its tensor."""
    if item is None or isinstance(item, EllipsisType):
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1


_GROWTH: Mapping[str, Growth] = MappingProxyType(
    {
        **dict.fromkeys(("zeros", "ones"), _filled),
        **dict.fromkeys(("new_zeros", "new_ones"), _new_filled),
        **dict.fromkeys(("expand", "broadcast_to"), _expand),
        **dict.fromkeys(("repeat", "tile"), _repeat),
        **dict.fromkeys(("cat", "concat", "stack", "diff"), _joined),
        **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
        **dict.fromkeys(("split", "chunk", "unbind"), _pieces),
        "full": _full,
        "new_full": _new_full,
        "arange": _arange,
        "repeat_interleave": _repeat_interleave,
        "outer": _outer,
        "one_hot": _one_hot,
        "pad": _pad,
        "index_select": _index_select,
        "getitem": _get_item,
    }
)
_TENSOR_ATTRIBUTES: Mapping[str, Callable[[Tensor], Value]] = MappingProxyType(
    {
        "T": lambda x: x.T,
        "mT": lambda x: x.mT,
        "device": lambda x: x.device,
        "dtype": lambda x: x.dtype,
        "ndim": lambda x: x.ndim,
        "shape": lambda x: x.shape,
    }
)
_MODULES: dict[Namespace, Any] = {
    "torch": torch,
    "functional": F,
    "special": torch.special,
    "linalg": torch.linalg,
    "method": Tensor,
    "operator": operator,
    "math": math,
}
_OURS: dict[tuple[Namespace, str], Callable[..., Value]] = {
    ("operator", "pow"): power,
    ("operator", "getitem"): get_item,
    ("functional", "relu"): _relu,
}
FUNCTIONS: Mapping[tuple[Namespace, str], Callable[..., Value]] = MappingProxyType(
    {**{(space, name): getattr(module, name) for space, module in _MODULES.items() for name in NAMES[space]}, **_OURS}
)
"""Every function of protocol.custom_loss_ops.NAMES; attributes are read by `get_attribute`."""
