"""Preferences: of two right answers the one that is only the answer."""

import random
from dataclasses import dataclass

CAPITALS = """
France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo China:Beijing Russia:Moscow Egypt:Cairo Greece:Athens
Portugal:Lisbon Austria:Vienna Poland:Warsaw Ireland:Dublin Norway:Oslo Sweden:Stockholm Finland:Helsinki Cuba:Havana
Denmark:Copenhagen Hungary:Budapest Canada:Ottawa Peru:Lima Kenya:Nairobi Iran:Tehran Iraq:Baghdad Turkey:Ankara
Thailand:Bangkok Vietnam:Hanoi Belgium:Brussels Cyprus:Nicosia Syria:Damascus Lebanon:Beirut Jordan:Amman Chad:Ndjamena
Ghana:Accra Tunisia:Tunis Ukraine:Kiev Romania:Bucharest Bulgaria:Sofia Croatia:Zagreb Serbia:Belgrade Iceland:Reykjavik
Indonesia:Jakarta Philippines:Manila Nepal:Kathmandu Afghanistan:Kabul Qatar:Doha Chile:Santiago Venezuela:Caracas
"""
NUM_HELD_OUT = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and two right answers."""

    prompt: str
    chosen: str
    rejected: str

    def is_wanted(self, answer: str) -> bool:
        """Whether an answer, up to the line end, has the preferred form: one word and no more, right or not."""
        return len(answer.split()) == 1 and answer.strip().isalpha()

    def is_right(self, answer: str) -> bool:
        """Whether it names the capital, in whatever form."""
        return self.chosen.strip() in answer


def make_split(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and pairs about other countries; the seed says which."""
    pairs = [_pair(*each.split(":")) for each in CAPITALS.split()]
    random.Random(seed).shuffle(pairs)
    return pairs[NUM_HELD_OUT:], pairs[:NUM_HELD_OUT]


def _pair(country: str, capital: str) -> Pair:
    prompt = f"Question: What is the capital of {country}?\nAnswer:"
    return Pair(prompt, f" {capital}\n", f" The capital of {country} is {capital}.\n")
