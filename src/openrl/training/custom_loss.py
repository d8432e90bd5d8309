"""Runs a traced loss on one datum: an interpreter over a table of functions, within bounds of memory and work.

The bounds count elements, not seconds: a request that succeeded once must succeed when it is replayed. A graph that
breaks one, or a call that raises, fails its request; nothing else has been touched by then.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openrl.errors import RequestFailed
from openrl.protocol.custom_loss import (
    MAX_INTEGER,
    Argument,
    CustomLoss,
    DType,
    HostDevice,
    Items,
    LossCall,
    Reference,
    SliceBounds,
)
from openrl.training.custom_loss_ops import FUNCTIONS, Arguments, Cost, Value, cost_of, get_attribute

MAX_BYTES = 2**29
"""Tensors that the calls on one datum make, all together."""
BASE_WORK = 2**21
WORK_PER_ELEMENT = 2**16
"""Scalar operations on one datum: a base, and for each element of its largest input."""
CALL_WORK = 2**10
"""What a call costs besides its elements."""
_BYTES_PER_ELEMENT = 8
_USER_ERRORS = (
    # All that a function of torch or Python raises when its arguments do not suit it.
    RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError,
)  # fmt: skip
_PYTHON_NUMBER = (bool, int, float)


@dataclass(frozen=True, slots=True)
class CustomTerms:
    """What a traced loss returns for one datum."""

    loss: Tensor
    metrics: dict[str, float]


def run_custom_loss(loss: CustomLoss, inputs: Sequence[Tensor]) -> CustomTerms:
    """Loss and metrics of one datum; raises RequestFailed naming the node where the graph failed."""
    budget = _Budget(BASE_WORK + WORK_PER_ELEMENT * max(each.numel() for each in inputs))
    values: list[Value] = list(inputs)
    for call in loss.calls:
        with _user_failures(f"custom loss {loss.name!r}, node {call.node!r} ({call.op})"):
            values.append(_run(call, values, budget))
    with _user_failures(f"custom loss {loss.name!r}"):
        metrics = {key: _number(values[place], f"metric {key!r}") for key, place in loss.metrics}
        return CustomTerms(_scalar(values[loss.loss]), metrics)


def custom_gradient(loss: CustomLoss, value: Tensor, logprobs: Tensor) -> Tensor:
    """The gradient of the log-probabilities; raises RequestFailed where the loss has none."""
    if not value.requires_grad:
        raise RequestFailed(f"custom loss {loss.name!r} does not depend on logprobs: it has no gradient", "user")
    with _user_failures(f"custom loss {loss.name!r}, its gradient"):
        return torch.autograd.grad(value, logprobs)[0]


@contextmanager
def _user_failures(where: str) -> Generator[None, None, None]:
    """What a graph of the client's can do wrong, as the failure of its request."""
    try:
        yield
    except _USER_ERRORS as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RequestFailed(f"{where}: {first_line[:300]}", "user") from error


class _Budget:
    """Counts what the calls on one datum take."""

    def __init__(self, work: int) -> None:
        self._max_work = work
        self._work = 0
        self._bytes = 0

    def charge(self, cost: Cost) -> None:
        """Raises ValueError where a call would go beyond the bounds; nothing is allocated yet."""
        self._work += CALL_WORK + cost.work
        num_bytes = self._bytes + _BYTES_PER_ELEMENT * cost.elements
        if num_bytes > MAX_BYTES:
            raise ValueError(f"it would make {cost.elements} elements; the loss may use {MAX_BYTES} bytes for a datum")
        if self._work > self._max_work:
            raise ValueError(f"the loss would take over {self._max_work} scalar operations, its bound for this datum")

    def note(self, result: Value) -> None:
        """Count what a call has made."""
        for made in result if isinstance(result, tuple) else (result,):
            if isinstance(made, Tensor) and not made._is_view():
                self._bytes += made.numel() * made.element_size()


def _run(call: LossCall, values: Sequence[Value], budget: _Budget) -> Value:
    args = tuple(_value(argument, values) for argument in call.args)
    if call.namespace == "getattr":
        return get_attribute(args[0], call.op)
    arguments = Arguments(args, {name: _value(argument, values) for name, argument in call.kwargs})
    function = FUNCTIONS[call.namespace, call.op]
    if call.namespace in ("operator", "math") and call.op != "getitem":
        return _calculate(call, function, arguments, budget)
    if call.namespace == "method" and not (args and isinstance(args[0], Tensor)):
        raise TypeError("methods are called on tensors only")
    budget.charge(cost_of(call.namespace, call.op, arguments))
    result = function(*args, **arguments.kwargs)
    budget.note(result)
    return result


def _calculate(call: LossCall, function: Callable[..., Value], arguments: Arguments, budget: _Budget) -> Value:
    """Arithmetic of tensors and of Python's numbers."""
    if not all(isinstance(value, Tensor | bool | int | float) for value in arguments.args):
        raise TypeError("it takes tensors and numbers")
    budget.charge(cost_of(call.namespace, call.op, arguments))
    result = function(*arguments.args, **arguments.kwargs)
    if isinstance(result, int) and abs(result) > MAX_INTEGER:
        raise OverflowError("an integer is beyond 2**63 - 1")
    budget.note(result)
    return result


def _value(argument: Argument, values: Sequence[Value]) -> Value:
    match argument:
        case Reference(place):
            return values[place]
        case Items(items, is_list):
            evaluated = [_value(item, values) for item in items]
            return evaluated if is_list else tuple(evaluated)
        case SliceBounds(start, stop, step):
            return slice(_value(start, values), _value(stop, values), _value(step, values))
        case DType(name):
            return getattr(torch, name)
        case HostDevice():
            return torch.device("cpu")
        case _:
            return argument


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss must be a floating-point tensor without dimensions, not {shape}")
    return value


def _number(value: Any, what: str) -> float:
    """Metrics are handed through as they are, also where they are not finite: no weight depends on them."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    if isinstance(value, _PYTHON_NUMBER):
        return float(value)
    raise TypeError(f"{what} must be one number")
