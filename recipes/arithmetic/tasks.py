"""Questions whose answers can be verified: sums made here, or a task of reasoning-gym."""

import importlib
import itertools
import random
from dataclasses import dataclass

SHOTS = "3 + 12 = 15\n7 + 11 = 18\n"
REASONING_TASKS = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 20},
}
"""reasoning-gym's tasks that a small model begins to solve, at a size that it does."""
NUM_DRAWN = 1000
NUM_SHOTS = 3


class UnknownTask(Exception):
    """There is no task of that name."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the model continues, up to a line end, and the right answer."""

    prompt: str
    answer: str

    def reward(self, answer: str) -> float:
        """1 for the right answer, else 0."""
        return float(answer.strip() == self.answer)


def make_questions(task: str, rng: random.Random) -> list[Question]:
    """All different questions of the task, shuffled; the first are those to hold out."""
    if task != "sums" and task not in REASONING_TASKS:
        raise UnknownTask(f"task = {task!r}: it must be sums, {', '.join(REASONING_TASKS)}")
    questions = _sums() if task == "sums" else _reasoning(task, REASONING_TASKS[task])
    rng.shuffle(questions)
    return questions


def _sums() -> list[Question]:
    """Sums of numbers up to 20; of 3 + 4 and 4 + 3 only the first."""
    pairs = itertools.combinations_with_replacement(range(1, 21), 2)
    return [Question(f"{SHOTS}{a} + {b} =", str(a + b)) for a, b in pairs if f"{a} + {b} =" not in SHOTS]


def _reasoning(task: str, size: dict[str, int]) -> list[Question]:
    """The task's own questions and answers, behind three solved ones."""
    gym = importlib.import_module("reasoning_gym")  # the extra `reasoning`: only these tasks need it
    entries = {entry["question"]: entry["answer"] for entry in gym.create_dataset(task, size=NUM_DRAWN, seed=1, **size)}
    pairs = [(" ".join(question.split()), str(answer)) for question, answer in entries.items()]
    shots = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in pairs[:NUM_SHOTS])
    return [Question(f"{shots}Q: {question}\nA:", answer) for question, answer in pairs[NUM_SHOTS:]]
