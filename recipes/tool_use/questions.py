"""Questions in words whose answers take two operations, with the calculation that answers each."""

import random
from dataclasses import dataclass

KINDS = (
    (
        "{a} * {b} + {c}",
        (
            "There are {a} boxes with {b} {things} each, and {c} more {things}. How many {things} are there?",
            "{name} has {a} bags of {b} {things} and gets {c} more. How many {things} has {name}?",
            "{name} buys {a} packs of {b} {things} and finds {c} {things}. How many {things} are that?",
        ),
    ),
    (
        "{a} * {b} - {c}",
        (
            "There are {a} boxes with {b} {things} each; {c} {things} are lost. How many {things} are left?",
            "{name} has {a} bags of {b} {things} and gives away {c}. How many {things} has {name}?",
            "{name} buys {a} packs of {b} {things} and breaks {c} {things}. How many {things} are whole?",
        ),
    ),
    (
        "{a} + {b} - {c}",
        (
            "There are {a} red {things} and {b} blue ones; {c} are lost. How many {things} are left?",
            "{name} has {a} {things}, gets {b} and gives away {c}. How many {things} has {name}?",
            "{name} finds {a} {things}, buys {b} and breaks {c}. How many {things} are whole?",
        ),
    ),
)
"""A calculation, and ways to ask for it; the last way is held out."""
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn")
THINGS = ("pens", "cups", "coins", "books", "eggs", "cards")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and what answers it."""

    text: str
    calculation: str
    answer: str

    @property
    def prompt(self) -> str:
        """What the model continues, line by line."""
        return f"Question: {self.text}\n"


def make_questions(count: int, is_held_out: bool, rng: random.Random) -> list[Question]:
    """Different questions, the kinds in turn."""
    found: dict[str, Question] = {}
    while len(found) < count:
        calculation, wordings = KINDS[len(found) % len(KINDS)]
        wording = wordings[-1] if is_held_out else rng.choice(wordings[:-1])
        a, b, c = rng.randint(10, 29), rng.randint(11, 39), rng.randint(2, 9)
        slots = {"a": a, "b": b, "c": c, "name": rng.choice(NAMES), "things": rng.choice(THINGS)}
        filled = calculation.format_map(slots)
        question = Question(wording.format_map(slots), filled.replace(" ", ""), str(_value(a, b, c, calculation)))
        found.setdefault(question.text, question)
    return list(found.values())


def _value(a: int, b: int, c: int, calculation: str) -> int:
    first = a * b if "*" in calculation else a + b
    return first + c if calculation.endswith("+ {c}") else first - c
