"""Reinforcement learning with a verifiable reward in its shortest form: a model learns to add."""

import random
from dataclasses import dataclass
from statistics import fmean

import tinker

from recipes.arithmetic.tasks import Question, make_questions
from recipes.datums import group_advantages, reinforced
from recipes.run import Run, Settings, begin


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Settings):
    """Settings of this recipe."""

    task: str
    prompts: int
    """Questions in a step."""
    samples: int
    """Answers to each: the group that an advantage is relative to."""
    held_out: int


@dataclass(frozen=True, slots=True)
class Group:
    """One question, answers to it, and what they earned."""

    prompt: list[int]
    samples: list[tinker.SampledSequence]
    rewards: list[float]

    def datums(self) -> list[tinker.Datum]:
        """Makes answers likelier that are better than their group; equal ones say nothing about what is better."""
        advantages = group_advantages(self.rewards) or []
        return [reinforced(self.prompt, *pair) for pair in zip(self.samples, advantages, strict=False)]


def ask(run: Run[Arithmetic], sampler: tinker.SamplingClient, questions: list[Question], seed: int) -> list[Group]:
    """A group of answers to each question."""
    prompts = [run.encode(question.prompt) for question in questions]
    params = [tinker.SamplingParams(max_tokens=5, stop=["\n"], seed=seed + place) for place in range(len(questions))]
    inputs = [tinker.ModelInput.from_ints(prompt) for prompt in prompts]
    futures = [sampler.sample(each, run.settings.samples, its) for each, its in zip(inputs, params, strict=True)]
    groups: list[Group] = []
    for question, prompt, future in zip(questions, prompts, futures, strict=True):  # all sent before one is awaited
        samples = list(future.result().sequences)
        groups.append(Group(prompt, samples, [question.reward(run.decode(sample.tokens)) for sample in samples]))
    return groups


def mean_reward(groups: list[Group]) -> float:
    """The share of right answers."""
    return fmean(reward for group in groups for reward in group.rewards)


def main() -> None:
    """Sample groups of answers, reward them, step; measure on held-out questions before and after."""
    with begin(Arithmetic, __file__) as run:
        settings, rng = run.settings, random.Random(run.settings.seed)
        questions = make_questions(settings.task, rng)
        held_out, train = questions[: settings.held_out], questions[settings.held_out :]
        before = mean_reward(
            ask(run, run.service.create_sampling_client(base_model=settings.model).result(), held_out, 0)
        )
        trainer = run.service.create_lora_training_client(
            settings.model, settings.rank, settings.seed, train_unembed=False
        ).result()
        for step in range(settings.steps):
            sampler = trainer.save_weights_and_get_sampling_client().result()
            groups = ask(run, sampler, rng.sample(train, settings.prompts), seed=step * settings.prompts)
            if datums := [datum for group in groups for datum in group.datums()]:
                gradient = trainer.forward_backward(datums, "importance_sampling")
                rate = settings.learning_rate * (1 - step / settings.steps)
                trainer.optim_step(tinker.AdamParams(learning_rate=rate))  # queued behind the gradient, in order
                gradient.result()
            if run.record(step + 1, reward=mean_reward(groups), datums=len(datums)):
                break
        after = mean_reward(ask(run, trainer.save_weights_and_get_sampling_client().result(), held_out, 0))
        run.finish(before=before, after=after)


if __name__ == "__main__":
    main()
