"""Generations end where their request says."""

import pytest

from openrl.protocol.results import StopReason
from openrl.sampling.base import SamplingOptions
from openrl.sampling.stopping import StopRule

EOS = frozenset({2})


class ByteDecoder:
    """Tokens are bytes; 256 is a special token. Whole characters only appear when all their bytes have."""

    def decode(self, token_ids: list[int], **options: bool) -> str:
        assert options["skip_special_tokens"] is False
        data = b"".join(b"<end>" if token == 256 else bytes([token]) for token in token_ids)
        return data.decode(errors="replace")


def ending(
    options: SamplingOptions, text: bytes | list[int], max_new_tokens: int = 1000
) -> tuple[int, StopReason | None]:
    """After how many tokens the sample ends, and why."""
    rule = StopRule(options, max_new_tokens, EOS, ByteDecoder())
    watch = rule.watch(list("Été: ".encode()))
    for count, token in enumerate(text, 1):
        reason = rule.reason(token, count, watch)
        if reason is not None:
            return count, reason
    return len(text), None


def test_a_stop_string_that_spans_tokens_ends_with_the_token_that_completes_it():
    assert ending(SamplingOptions(stop_strings=("END",)), b"the END of") == (7, "stop")


def test_the_first_of_several_stop_strings_ends_the_sample():
    assert ending(SamplingOptions(stop_strings=("zzz", "\n\n", "of")), b"the end of\n\n") == (10, "stop")


@pytest.mark.parametrize("stop", ["é", "naïve", "日本", "🎉!"])
def test_stop_strings_of_several_bytes_a_character_work(stop: str):
    text = f"plain text, then {stop} and more".encode()
    end = text.index(stop.encode()) + len(stop.encode())
    assert ending(SamplingOptions(stop_strings=(stop,)), text) == (end, "stop")


def test_bytes_that_are_no_text_do_not_hide_a_stop_string():
    assert ending(SamplingOptions(stop_strings=("ab",)), [0xFF] * 20 + [97, 98, 99]) == (22, "stop")


def test_a_stop_string_far_longer_than_the_decoding_window_is_found():
    stop = "abcdefghij" * 5
    assert ending(SamplingOptions(stop_strings=(stop,)), ("x" * 30 + stop + "y").encode()) == (80, "stop")


def test_a_stop_string_may_name_a_special_token():
    assert ending(SamplingOptions(stop_strings=("<end>",)), [97, 98, 256, 99]) == (3, "stop")


def test_the_prompt_does_not_count_towards_a_stop_string():
    assert ending(SamplingOptions(stop_strings=(": x",)), b"xyz") == (3, None)


def test_stop_token_ids_end_the_sample():
    assert ending(SamplingOptions(stop_token_ids=(99, 101)), b"abcde") == (3, "stop")


def test_end_of_sequence_stops_only_where_the_request_names_no_stop():
    assert ending(SamplingOptions(), [5, 2, 7]) == (2, "stop")
    assert ending(SamplingOptions(stops_at_eos=False), [5, 2, 7]) == (3, None)


def test_a_stop_on_the_last_allowed_token_is_a_stop():
    assert ending(SamplingOptions(), [5, 6, 7], max_new_tokens=3) == (3, "length")
    assert ending(SamplingOptions(), [5, 6, 2], max_new_tokens=3) == (3, "stop")
