"""The datums that a driven SDK version sends, and the plain numbers of what comes back."""

import hashlib
from typing import Any

import numpy as np
from tinker import types

PROMPT = [5, 61, 17, 118, 9, 240, 33, 7, 402, 90]


def datum(tokens: list[int], **inputs: Any) -> types.Datum:
    given: dict[str, Any] = inputs or {"weights": [1.0] * (len(tokens) - 1)}
    model_input = types.ModelInput.from_ints(tokens[:-1])
    return types.Datum(model_input=model_input, loss_fn_inputs={"target_tokens": tokens[1:], **given})  # pyright: ignore[reportArgumentType]


def batch(count: int, first: int = 0) -> list[types.Datum]:
    """Datums of 4 to 10 tokens."""
    rng = np.random.default_rng([7, first])
    return [datum(rng.integers(1, 512, 4 + (first + i) % 7).tolist()) for i in range(count)]


def policy_datum() -> types.Datum:
    places = len(PROMPT) - 1
    logprobs = np.linspace(-7.0, -5.0, places).astype(np.float32)
    advantages = np.linspace(-1.0, 1.0, places).astype(np.float32)
    return datum(PROMPT, logprobs=logprobs.tolist(), advantages=advantages.tolist())


def matrix_datum() -> types.Datum:
    """Three targets at each place."""
    places = len(PROMPT) - 1
    targets = np.arange(1, 1 + 3 * places, dtype=np.int64).reshape(places, 3)
    weights = np.linspace(0.0, 1.0, 3 * places).astype(np.float32).reshape(places, 3)
    model_input = types.ModelInput.from_ints(PROMPT[:-1])
    return types.Datum(model_input=model_input, loss_fn_inputs={"target_tokens": targets, "weights": weights})  # pyright: ignore[reportArgumentType]


def passed(output: Any) -> dict[str, Any]:
    """All numbers of a forward or forward_backward; many outputs as their digest."""
    rows = [np.asarray(each["logprobs"].data, np.float32).reshape(-1) for each in output.loss_fn_outputs]
    digest = hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()
    return {
        "num": len(rows),
        "first": rows[0].tolist(),
        "digest": digest,
        "metrics": dict(sorted(output.metrics.items())),
    }


def sampled(response: Any) -> dict[str, Any]:
    return {
        "tokens": [list(map(int, each.tokens)) for each in response.sequences],
        "logprobs": [list(map(float, each.logprobs)) for each in response.sequences],
        "stop_reasons": [str(each.stop_reason) for each in response.sequences],
        "prompt_logprobs": floats(response.prompt_logprobs),
        "topk": [row and [[int(token), float(value)] for token, value in row] for row in response.topk_prompt_logprobs],
    }


def floats(values: Any) -> list[float | None]:
    return [None if value is None else float(value) for value in values]
