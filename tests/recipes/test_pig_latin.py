import pytest

from recipes.pig_latin.train import HELD_OUT_WORDS, TRAIN_WORDS, pig_latin


@pytest.mark.parametrize(("word", "answer"), [("banana", "ananabay"), ("street", "eetstray"), ("apple", "appleay")])
def test_pig_latin_moves_what_stands_before_the_first_vowel(word: str, answer: str):
    assert pig_latin(word) == answer


def test_no_held_out_word_is_trained_on():
    assert set(TRAIN_WORDS.split()).isdisjoint(HELD_OUT_WORDS.split())
