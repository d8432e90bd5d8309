"""A history is a function of the tokens, however they are taken in."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from openrl.sampling.token_history import PromptTokens, TokenHistory

TOKENS = st.lists(st.integers(0, 9), max_size=20)


@given(prompt=TOKENS, output=TOKENS, cuts=st.lists(st.integers(0, 20)))
def test_it_holds_each_token_once_and_counts_the_output_alone(prompt: list[int], output: list[int], cuts: list[int]):
    history = TokenHistory(PromptTokens(prompt), len(prompt))
    for end in [*sorted(min(cut, len(output)) for cut in cuts), len(output), len(output)]:
        history.follow(prompt + output[:end])
    held, (tokens, counts) = history.held.tolist(), history.generated
    assert sorted(held) == sorted(set(prompt + output))
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == Counter(output)


def test_samples_of_one_prompt_do_not_share_what_they_say():
    prompt = PromptTokens([1, 2])
    one, other = TokenHistory(prompt, 2), TokenHistory(prompt, 2)
    one.follow([1, 2, 7])
    other.follow([1, 2, 8, 8])
    assert sorted(one.held.tolist()) == [1, 2, 7]
    assert sorted(other.held.tolist()) == [1, 2, 8]
    assert [part.tolist() for part in other.generated] == [[8], [2]]
