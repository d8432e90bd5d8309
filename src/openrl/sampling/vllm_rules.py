"""What a pool of vLLM servers cannot do as the contract has it, refused by name. No torch: the gateway asks too."""

from typing import Protocol

from openrl.errors import BadValue

LEAST_TEMPERATURE = 0.01
"""vLLM raises what is lower, and not 0, to this."""
ONLY_BUILT_IN = 'not given: a pool of vLLM servers does not score or draw tokens there (sampling.engine = "vllm")'


class Choosing(Protocol):
    """The options that decide how a token is chosen; SamplingOptions and the wire's have them."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...


def is_greedy(options: Choosing) -> bool:
    """Whether temperature 0 gives the same tokens with the same log-probabilities."""
    return options.temperature == 0.0 or (options.temperature == 1.0 and (options.top_k == 1 or options.top_p == 0.0))


def is_altered(options: Choosing, vocab_size: int) -> bool:
    """Whether tokens are drawn from another distribution than the model's at the temperature.

    The log-probabilities that vLLM gives with them are then of that other one.
    """
    is_penalised = (
        options.repetition_penalty != 1.0 or options.presence_penalty != 0.0 or options.frequency_penalty != 0.0
    )
    is_cut = 0 < options.top_k < vocab_size or options.top_p < 1.0 or options.min_p > 0.0
    return is_penalised or (is_cut and not is_greedy(options))


def check(options: Choosing, vocab_size: int, *, has_targets: bool, num_alternatives: int) -> None:
    """Raises BadValue for what would not be exact, however it were asked."""
    if has_targets:
        raise BadValue("target_prompt_logprobs", "given", ONLY_BUILT_IN, "not_supported")
    if num_alternatives:
        raise BadValue("prompt_alt_tokens_k", num_alternatives, f"0: {ONLY_BUILT_IN}", "not_supported")
    temperature = options.temperature
    if 0.0 < temperature < LEAST_TEMPERATURE:
        bound = f"0, or at least {LEAST_TEMPERATURE}: vLLM would raise it to that"
        raise BadValue("temperature", temperature, bound, "not_supported")
    if is_altered(options, vocab_size) and temperature not in (0.0, 1.0):
        bound = (
            "0 or 1 together with top_k, top_p, min_p or a penalty: at others vLLM's log-probabilities are not of the "
            "tempered distribution"
        )
        raise BadValue("temperature", temperature, bound, "not_supported")
