"""The bound on a call's output, told from its arguments, against what the call puts out."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from openrl.protocol.custom_loss_ops import NAMES, Namespace
from openrl.training.custom_loss_ops import FUNCTIONS, Arguments, cost_of, power

X = torch.arange(1.0, 13.0).reshape(3, 4) / 13
Y = torch.linspace(-1.0, 1.0, 4)
MASK = X > 0.4
INDEX = torch.tensor([2, 0, 1, 1, 0])

SPECIAL: list[tuple[Namespace, str, tuple[Any, ...], dict[str, Any]]] = [
    ("torch", "cat", ([X, X, X],), {}),
    ("torch", "stack", ((X, X),), {"dim": 1}),
    ("torch", "arange", (7,), {}),
    ("torch", "arange", (2, 9, 3), {}),
    ("torch", "arange", (), {"end": 5.5}),
    ("torch", "arange", (9, 2, -3), {}),
    ("torch", "zeros", (3, 4), {}),
    ("torch", "ones", ((3, 4),), {}),
    ("torch", "zeros", (), {"size": [2, 2]}),
    ("torch", "full", ((3, 4), 2.0), {}),
    ("method", "new_zeros", (X, 3, 5), {}),
    ("method", "new_ones", (X, (3, 5)), {}),
    ("method", "new_full", (X, (3, 5), 2.0), {}),
    ("method", "expand", (Y, 5, -1), {}),
    ("method", "expand", (Y, (2, 5, 4)), {}),
    ("method", "expand_as", (Y, X), {}),
    ("torch", "broadcast_to", (Y, (3, 4)), {}),
    ("method", "repeat", (X, 2, 3), {}),
    ("torch", "tile", (X, (2, 3)), {}),
    ("torch", "repeat_interleave", (X, 3), {}),
    ("torch", "matmul", (X, X.T), {}),
    ("torch", "matmul", (X, Y), {}),
    ("torch", "bmm", (X[None], X.T[None]), {}),
    ("torch", "dot", (Y, Y), {}),
    ("torch", "mv", (X, Y), {}),
    ("torch", "outer", (Y, X.reshape(-1)), {}),
    ("torch", "diff", (Y,), {"prepend": Y, "append": Y}),
    ("functional", "one_hot", (INDEX, 6), {}),
    ("functional", "pad", (X, [1, 2, 3, 4]), {}),
    ("functional", "pad", (X, [-1, 2]), {}),
    ("torch", "index_select", (X, 0, INDEX), {}),
    ("torch", "gather", (X, 1, INDEX.reshape(1, 5) % 3), {}),
    ("torch", "take_along_dim", (X, INDEX[:3, None], 1), {}),
    ("torch", "split", (X, 1), {}),
    ("torch", "chunk", (X, 3), {}),
    ("torch", "unbind", (X, 1), {}),
    ("torch", "masked_select", (X, MASK), {}),
    ("torch", "where", (MASK, Y, 0.0), {}),
    ("torch", "topk", (X, 2), {}),
    ("torch", "sort", (X,), {"descending": True}),
    ("torch", "scatter_add", (X, 1, INDEX[:3, None], X), {}),
    ("functional", "cross_entropy", (X, INDEX[:3]), {"reduction": "none"}),
    ("operator", "getitem", (X, INDEX), {}),
    ("operator", "getitem", (X, (slice(None), INDEX)), {}),
    ("operator", "getitem", (X, (INDEX[:, None], INDEX)), {}),
    ("operator", "getitem", (X, (..., INDEX)), {}),
    ("operator", "getitem", (X, (None, INDEX, None)), {}),
    ("operator", "getitem", (X, [0, 1, 2, 2, 2]), {}),
    ("operator", "getitem", (X, MASK), {}),
    ("operator", "getitem", (X, (0, slice(1, None))), {}),
    ("operator", "add", (X[:, None], Y), {}),
]


def outputs(result: Any) -> Iterator[Tensor]:
    for each in result if isinstance(result, tuple | list) else (result,):
        if isinstance(each, Tensor):
            yield each


@pytest.mark.parametrize(("namespace", "op", "args", "kwargs"), SPECIAL)
def test_a_call_that_can_grow_stays_within_its_bound(
    namespace: Namespace, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]
):
    bound = cost_of(namespace, op, Arguments(args, kwargs)).elements
    made = [each.numel() for each in outputs(FUNCTIONS[namespace, op](*args, **kwargs))]
    assert max(made) <= bound <= 4 * max(*made, X.numel())


SHAPES: list[tuple[Any, ...]] = [
    (X,), (X, Y), (X, X), (X, 1), (X, 0, 1), (X, 0), (X, Y, X), (MASK, X, X), (X, MASK, 0.0), (MASK,), (MASK, MASK),
    (INDEX,), (X, (4, 3)), (X, (1,)), (X, 1, (2, 2)), (INDEX, INDEX), (X, 0, INDEX % 3, X), (X, 0, 0, 1), (X, "none"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_function_on_the_list_stays_within_its_bound_on_plain_arguments():
    """Each is called with all kinds of arguments; those that it does not take are refused by torch or by us."""
    called: set[tuple[Namespace, str]] = set()
    for namespace, op in FUNCTIONS:
        for args in SHAPES:
            try:
                bound = cost_of(namespace, op, Arguments(args, {})).elements
                made = [each.numel() for each in outputs(FUNCTIONS[namespace, op](*args))]
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
                continue
            called.add((namespace, op))
            assert max(made, default=0) <= bound, (namespace, op, args)
    assert len(called) > 0.75 * len(FUNCTIONS), sorted(FUNCTIONS.keys() - called)


def test_no_function_changes_its_arguments():
    for namespace, op in FUNCTIONS:
        for args in SHAPES[:8]:
            before = [each.clone() for each in args if isinstance(each, Tensor)]
            try:
                FUNCTIONS[namespace, op](*args)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, UserWarning):
                continue
            after = [each for each in args if isinstance(each, Tensor)]
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), (namespace, op)


def test_every_listed_name_has_a_function():
    listed = {(namespace, name) for namespace, names in NAMES.items() for name in names if namespace != "getattr"}
    assert set(FUNCTIONS) == listed


def test_powers_of_integers_stay_small():
    assert power(2, 60) == 2**60
    assert power(0.5, 2) == 0.25
    with pytest.raises(OverflowError):
        power(10, 10**9)
