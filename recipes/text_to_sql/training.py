"""The two training loops: a supervised warm-up, then reinforcement learning on execution."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import tinker
from tinker.types import LossFnType

from recipes.datums import reinforced, supervised

from .codec import Codec
from .evaluation import STOP
from .grader import Grade, Grader
from .progress import Phase
from .questions import Question, query_of
from .rewards import REWARDS, group_advantages
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Group:
    """One question and the queries sampled for it."""

    prompt: list[int]
    samples: list[tinker.SampledSequence]
    grades: list[Grade]

    @property
    def num_tokens(self) -> int:
        """Tokens that were sampled."""
        return sum(len(sample.tokens) for sample in self.samples)

    def datums(self) -> list[tinker.Datum]:
        """What the group teaches; nothing if all its queries are equally good."""
        advantages = group_advantages([REWARDS[grade] for grade in self.grades])
        if advantages is None:
            return []
        return [
            reinforced(self.prompt, sample, advantage)
            for sample, advantage in zip(self.samples, advantages, strict=True)
        ]


class Update:
    """A gradient and a step that were submitted together; the server does them in order."""

    def __init__(
        self, trainer: tinker.TrainingClient, datums: list[tinker.Datum], loss: LossFnType, rate: float
    ) -> None:
        self.datums = datums
        self.num_tokens = sum(datum.model_input.length for datum in datums)
        self._gradient = trainer.forward_backward(datums, loss) if datums else None
        self._step = trainer.optim_step(tinker.AdamParams(learning_rate=rate)) if datums else None

    def output(self) -> tinker.ForwardBackwardOutput | None:
        """Wait for both; None if there was nothing to learn."""
        if self._gradient is None or self._step is None:
            return None
        self._step.result()
        return self._gradient.result()


def warm_up(
    trainer: tinker.TrainingClient, questions: Sequence[Question], codec: Codec, settings: Settings, phase: Phase
) -> None:
    """Supervised steps on gold queries; each is submitted before the one before it is read."""
    pending: tuple[Update, int] | None = None
    for start in range(0, settings.sft_steps * settings.sft_batch, settings.sft_batch):
        batch = questions[start : start + settings.sft_batch]
        pairs = [(codec.prompt(question), codec.completion(question)) for question in batch]
        datums = [supervised(prompt, completion) for prompt, completion in pairs]
        update = Update(trainer, datums, "cross_entropy", settings.sft_learning_rate)
        if pending is not None:
            _finish_warm_up_step(*pending, phase)
        pending = update, sum(len(completion) for _, completion in pairs)
    if pending is not None:
        _finish_warm_up_step(*pending, phase)


def reinforce(
    trainer: tinker.TrainingClient,
    questions: Sequence[Question],
    codec: Codec,
    grader: Grader,
    settings: Settings,
    phase: Phase,
) -> None:
    """GRPO: sample groups from the latest weights, grade them by execution, step on their advantages.

    The step and the snapshot after it are submitted together, and the next groups are requested
    before the step's result is read: the server is never idle while this loop thinks.
    """
    rng = random.Random(f"rl/{settings.seed}")
    snapshot = trainer.save_weights_and_get_sampling_client()
    pending: tuple[Update, list[Group]] | None = None
    for start in range(0, settings.steps * settings.rl_prompts, settings.rl_prompts):
        asked = questions[start : start + settings.rl_prompts]  # neighbours differ in template (questions.py)
        futures = _request(snapshot.result(), asked, codec, settings, rng)
        if pending is not None:
            _finish_rl_step(*pending, phase)
        groups = [_graded(each, future, codec, grader) for each, future in zip(asked, futures, strict=True)]
        datums = [datum for group in groups for datum in group.datums()]
        pending = Update(trainer, datums, "importance_sampling", settings.learning_rate), groups
        snapshot = trainer.save_weights_and_get_sampling_client()
    if pending is not None:
        _finish_rl_step(*pending, phase)


def _request(
    sampler: tinker.SamplingClient, asked: Sequence[Question], codec: Codec, settings: Settings, rng: random.Random
) -> list[tinker.APIFuture[tinker.SampleResponse]]:
    return [
        sampler.sample(
            tinker.ModelInput.from_ints(codec.prompt(question)),
            settings.rl_samples,
            tinker.SamplingParams(max_tokens=settings.max_tokens, stop=STOP, seed=rng.randrange(2**31)),
        )
        for question in asked
    ]


def _graded(
    question: Question, future: "tinker.APIFuture[tinker.SampleResponse]", codec: Codec, grader: Grader
) -> Group:
    samples = list(future.result().sequences)
    queries = [query_of(codec.text(sample.tokens)) for sample in samples]
    return Group(codec.prompt(question), samples, [grader.grade(question.task, query) for query in queries])


def _finish_warm_up_step(update: Update, num_targets: int, phase: Phase) -> None:
    output = update.output()
    loss = output.metrics["loss:sum"] if output else 0.0
    phase.step(loss / num_targets, update.num_tokens)


def _finish_rl_step(update: Update, groups: list[Group], phase: Phase) -> None:
    output = update.output()
    grades = [grade for group in groups for grade in group.grades]
    reward = sum(REWARDS[grade] for grade in grades) / len(grades)
    num_tokens = update.num_tokens + sum(group.num_tokens for group in groups)
    gap = logprob_gap(update.datums, output) if output else None
    phase.step(reward, num_tokens, accuracy=grades.count(Grade.CORRECT) / len(grades), logprob_gap=gap)


def logprob_gap(datums: Sequence[tinker.Datum], output: tinker.ForwardBackwardOutput) -> float:
    """Mean distance of the trainer's log-probabilities from the sampler's, over sampled tokens.

    Both computed the same weights: anything but rounding means that the gradient is not the policy's.
    """
    gaps = [
        abs(trained - sampled)
        for datum, outputs in zip(datums, output.loss_fn_outputs, strict=True)
        for trained, sampled, advantage in zip(
            outputs["logprobs"].data,
            datum.loss_fn_inputs["logprobs"].data,
            datum.loss_fn_inputs["advantages"].data,
            strict=True,
        )
        if advantage != 0.0
    ]
    return sum(gaps) / len(gaps)
