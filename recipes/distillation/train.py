"""On-policy distillation: the student writes, the teacher says of every token how likely it finds it."""

import random
from dataclasses import dataclass
from statistics import fmean

import tinker

from recipes.arithmetic.tasks import Question, make_questions
from recipes.datums import reinforced_tokens, supervised
from recipes.run import Run, Settings, begin


@dataclass(frozen=True, kw_only=True)
class Distillation(Settings):
    """Settings of this recipe; `steps` and `learning_rate` are the student's."""

    teacher_steps: int
    teacher_batch: int
    teacher_learning_rate: float
    prompts: int
    samples: int
    held_out: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the student wrote to a question, and what both think of each of its tokens."""

    question: Question
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    teacher_logprobs: list[float]

    @property
    def gaps(self) -> list[float]:
        """Teacher less student, a token: how much likelier the teacher would have written it.

        In the mean over the student's own tokens this is minus the reverse KL divergence from the teacher; as an
        advantage, its gradient is that of the divergence.
        """
        return [theirs - ours for theirs, ours in zip(self.teacher_logprobs, self.logprobs, strict=True)]


def train_teacher(run: Run[Distillation], train: list[Question]) -> tinker.SamplingClient:
    """A teacher: the same base model, supervised on right answers."""
    settings, rng = run.settings, random.Random(f"teacher/{run.settings.seed}")
    trainer = run.service.create_lora_training_client(
        settings.model, settings.rank, settings.seed, train_unembed=False
    ).result()
    for step in range(settings.teacher_steps):
        batch = rng.sample(train, settings.teacher_batch)
        datums = [supervised(run.encode(each.prompt), run.encode_more(f" {each.answer}\n")) for each in batch]
        gradient = trainer.forward_backward(datums, "cross_entropy")
        rate = settings.teacher_learning_rate * (1 - step / settings.teacher_steps)
        trainer.optim_step(tinker.AdamParams(learning_rate=rate))
        gradient.result()
    return trainer.save_weights_and_get_sampling_client().result()


def ask(
    run: Run[Distillation],
    student: tinker.SamplingClient,
    teacher: tinker.SamplingClient,
    questions: list[Question],
    seed: int,
) -> list[Answer]:
    """The student's answers, each read by the teacher."""
    prompts = [run.encode(question.prompt) for question in questions]
    params = [tinker.SamplingParams(max_tokens=5, stop=["\n"], seed=seed + place) for place in range(len(questions))]
    inputs = [tinker.ModelInput.from_ints(prompt) for prompt in prompts]
    futures = [student.sample(each, run.settings.samples, its) for each, its in zip(inputs, params, strict=True)]
    written = [
        (question, prompt, sample)
        for question, prompt, future in zip(questions, prompts, futures, strict=True)
        for sample in future.result().sequences
    ]
    reads = [teacher.compute_logprobs(tinker.ModelInput.from_ints(p + list(s.tokens))) for _, p, s in written]
    return [
        Answer(question, prompt, list(sample.tokens), list(sample.logprobs or ()), _after(prompt, read.result()))
        for (question, prompt, sample), read in zip(written, reads, strict=True)
    ]


def _after(prompt: list[int], logprobs: list[float | None]) -> list[float]:
    """Those of the tokens after the prompt; only the first of a sequence has none."""
    return [value for value in logprobs[len(prompt) :] if value is not None]


def reverse_kl(answers: list[Answer]) -> float:
    """How far the student is from the teacher on what the student writes, a token."""
    return -fmean(gap for answer in answers for gap in answer.gaps)


def accuracy(run: Run[Distillation], answers: list[Answer]) -> float:
    """The share of right answers; the loop does not learn from it."""
    return fmean(answer.question.reward(run.decode(answer.tokens)) for answer in answers)


def main() -> None:
    """Make a teacher; the student samples, is corrected token by token, and steps. Nobody tells it right answers."""
    with begin(Distillation, __file__) as run:
        settings, rng = run.settings, random.Random(run.settings.seed)
        questions = make_questions("sums", rng)
        held_out, train = questions[: settings.held_out], questions[settings.held_out :]
        teacher = train_teacher(run, train)
        taught = accuracy(run, ask(run, teacher, teacher, held_out, 0))
        base = run.service.create_sampling_client(base_model=settings.model).result()
        before = ask(run, base, teacher, held_out, 0)
        trainer = run.service.create_lora_training_client(
            settings.model, settings.rank, settings.seed + 1000, train_unembed=False
        ).result()
        for step in range(settings.steps):
            student = trainer.save_weights_and_get_sampling_client().result()
            batch = rng.sample(train, settings.prompts)
            answers = ask(run, student, teacher, batch, seed=step * settings.prompts)
            datums = [reinforced_tokens(each.prompt, each.tokens, each.logprobs, each.gaps) for each in answers]
            gradient = trainer.forward_backward(datums, "importance_sampling")
            rate = settings.learning_rate * (1 - step / settings.steps)
            trainer.optim_step(tinker.AdamParams(learning_rate=rate))  # queued behind the gradient, in order
            gradient.result()
            if run.record(step + 1, reverse_kl=reverse_kl(answers), accuracy=accuracy(run, answers)):
                break
        after = ask(run, trainer.save_weights_and_get_sampling_client().result(), teacher, held_out, 0)
        run.finish(
            before=accuracy(run, before),
            after=accuracy(run, after),
            teacher=taught,
            kl_before=reverse_kl(before),
            kl_after=reverse_kl(after),
        )


if __name__ == "__main__":
    main()
