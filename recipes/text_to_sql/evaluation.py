"""Measures how many questions a model answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import tinker

from .codec import Codec
from .grader import Grade, Grader
from .questions import Question, query_of

STOP = [";", "\n"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Execution accuracy on a set of questions."""

    greedy: float  # share answered by the likeliest query
    pass_at_k: float  # share answered by at least one of k samples
    k: int
    by_level: dict[int, float]  # greedy, per level
    examples: tuple[tuple[str, str, str], ...]  # question, query, grade


def evaluate(
    sampler: tinker.SamplingClient,
    questions: Sequence[Question],
    codec: Codec,
    grader: Grader,
    max_tokens: int,
    num_samples: int,
) -> Evaluation:
    """Greedy and sampled answers to all questions, requested at once."""
    greedy = tinker.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=STOP)
    sampled = tinker.SamplingParams(max_tokens=max_tokens, temperature=1.0, stop=STOP, seed=1)
    prompts = [tinker.ModelInput.from_ints(codec.prompt(question)) for question in questions]
    greedy_futures = [sampler.sample(prompt, 1, greedy) for prompt in prompts]
    sampled_futures = [sampler.sample(prompt, num_samples, sampled) for prompt in prompts]
    queries = [query_of(codec.text(future.result().sequences[0].tokens)) for future in greedy_futures]
    grades = [grader.grade(question.task, query) for question, query in zip(questions, queries, strict=True)]
    num_passed = sum(
        any(_is_correct(question, sequence, codec, grader) for sequence in future.result().sequences)
        for question, future in zip(questions, sampled_futures, strict=True)
    )
    return Evaluation(
        greedy=grades.count(Grade.CORRECT) / len(grades),
        pass_at_k=num_passed / len(questions),
        k=num_samples,
        by_level=_by_level(questions, grades),
        examples=tuple(
            (question.text, query, grade.value)
            for question, query, grade in zip(questions, queries, grades, strict=True)
        ),
    )


def _is_correct(question: Question, sequence: tinker.SampledSequence, codec: Codec, grader: Grader) -> bool:
    return grader.grade(question.task, query_of(codec.text(sequence.tokens))) is Grade.CORRECT


def _by_level(questions: Sequence[Question], grades: Sequence[Grade]) -> dict[int, float]:
    asked = Counter(question.level for question in questions)
    right = Counter(q.level for q, grade in zip(questions, grades, strict=True) if grade is Grade.CORRECT)
    return {level: right[level] / asked[level] for level in sorted(asked)}
