"""Multi-turn tool use: the model writes a calculation, the environment its result, the model the answer."""

import random
from dataclasses import dataclass, field
from statistics import fmean

import tinker

from recipes.datums import group_advantages, numbers, reinforced_tokens, token_ids
from recipes.run import Run, Settings, begin
from recipes.sandbox import Sandbox
from recipes.tool_use.questions import Question, make_questions

CALL, RESULT, ANSWER = "calc:", "result:", "answer:"
MAX_LINE_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class ToolUse(Settings):
    """Settings of this recipe; `steps` and `learning_rate` are those of reinforcement."""

    sft_learning_rate: float
    sft_steps: int
    sft_batch: int
    prompts: int
    """Questions in a step."""
    samples: int
    """Episodes of each: the group that an advantage is relative to."""
    held_out: int
    max_turns: int


@dataclass(slots=True)
class Episode:
    """A question and what was written under it, by the model and, with mask 0, by the environment."""

    question: Question
    prompt: list[int]
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    mask: list[float] = field(default_factory=list[float])
    reward: float = 0.0
    is_over: bool = False

    def write(self, tokens: list[int], logprobs: list[float] | None) -> None:
        """The model's tokens with their log-probabilities, or the environment's with none."""
        self.tokens += tokens
        self.logprobs += logprobs or [0.0] * len(tokens)
        self.mask += [0.0 if logprobs is None else 1.0] * len(tokens)

    def datum(self, advantage: float) -> tinker.Datum:
        """Only what the model wrote is made likelier; a result of the tool is context."""
        return reinforced_tokens(self.prompt, self.tokens, self.logprobs, [advantage * each for each in self.mask])


def reply(episode: Episode, line: str, calculator: Sandbox) -> str | None:
    """What the environment writes under the model's line; None where the episode ends."""
    if line.startswith(CALL):
        outcome = calculator.run(line.removeprefix(CALL).strip())
        return f"{RESULT} {outcome.value[:20] if outcome.ending == 'done' else 'error'}\n"
    episode.is_over = True
    if line.startswith(ANSWER):
        episode.reward = float(line.removeprefix(ANSWER).strip() == episode.question.answer)
    return None


def play(
    run: Run[ToolUse], sampler: tinker.SamplingClient, calculator: Sandbox, episodes: list[Episode], seed: int | None
) -> None:
    """All episodes side by side, a turn of each at a time; greedy without a seed."""
    for turn in range(run.settings.max_turns):
        open_ones = [episode for episode in episodes if not episode.is_over]
        futures = [
            sampler.sample(
                tinker.ModelInput.from_ints(episode.prompt + episode.tokens),
                1,
                tinker.SamplingParams(
                    max_tokens=MAX_LINE_TOKENS,
                    stop=["\n"],
                    temperature=0.0 if seed is None else 1.0,
                    seed=None if seed is None else seed + turn * len(episodes) + place,
                ),
            )
            for place, episode in enumerate(open_ones)
        ]
        for episode, future in zip(open_ones, futures, strict=True):
            written = future.result().sequences[0]
            episode.write(list(written.tokens), list(written.logprobs or ()))
            if (text := reply(episode, run.decode(written.tokens), calculator)) is not None:
                episode.write(run.encode_more(text), None)


def trace(run: Run[ToolUse], question: Question) -> tinker.Datum:
    """A written episode to imitate: weight 1 on the model's lines, 0 on the question and the tool's result."""
    lines = (f"{CALL} {question.calculation}\n", f"{RESULT} {question.answer}\n", f"{ANSWER} {question.answer}\n")
    tokens, weights = run.encode(question.prompt), list[float]()
    weights += [0.0] * len(tokens)
    for line in lines:
        more = run.encode_more(line)
        tokens, weights = tokens + more, weights + [0.0 if line.startswith(RESULT) else 1.0] * len(more)
    inputs = {"target_tokens": token_ids(tokens[1:]), "weights": numbers(weights[1:])}
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)


def imitate(run: Run[ToolUse], trainer: tinker.TrainingClient, questions: list[Question]) -> None:
    """A few supervised steps: before them the model has never seen the tool, and a reward never comes."""
    settings = run.settings
    for step in range(settings.sft_steps):
        batch = questions[step * settings.sft_batch : (step + 1) * settings.sft_batch]
        trainer.forward_backward([trace(run, each) for each in batch], "cross_entropy")
        trainer.optim_step(tinker.AdamParams(learning_rate=settings.sft_learning_rate)).result()


def evaluate(
    run: Run[ToolUse], sampler: tinker.SamplingClient, calculator: Sandbox, questions: list[Question]
) -> float:
    """Share answered right, each line the likeliest."""
    episodes = [Episode(each, run.encode(each.prompt)) for each in questions]
    play(run, sampler, calculator, episodes, seed=None)
    return fmean(episode.reward for episode in episodes)


def main() -> None:
    """Imitate a few traces, then learn from whether answers are right; measured in wordings never trained on."""
    with begin(ToolUse, __file__) as run, Sandbox("recipes.tool_use.calculator:calculate") as calculator:
        settings, rng = run.settings, random.Random(run.settings.seed)
        held_out = make_questions(settings.held_out, True, random.Random("held-out"))
        num_imitated = settings.sft_steps * settings.sft_batch
        train = make_questions(num_imitated + settings.steps * settings.prompts, False, rng)
        base = run.service.create_sampling_client(base_model=settings.model).result()
        before = evaluate(run, base, calculator, held_out)
        trainer = run.service.create_lora_training_client(
            settings.model, settings.rank, settings.seed, train_unembed=False
        ).result()
        imitate(run, trainer, train)
        sampler = trainer.save_weights_and_get_sampling_client().result()
        after_sft = evaluate(run, sampler, calculator, held_out)
        for step in range(settings.steps):
            start = num_imitated + step * settings.prompts
            asked = train[start : start + settings.prompts]
            groups = [[Episode(each, run.encode(each.prompt)) for _ in range(settings.samples)] for each in asked]
            episodes = [episode for group in groups for episode in group]
            play(run, sampler, calculator, episodes, seed=step * len(episodes) * settings.max_turns)
            datums = list[tinker.Datum]()
            for group in groups:
                advantages = group_advantages([episode.reward for episode in group]) or []
                datums += [each.datum(advantage) for each, advantage in zip(group, advantages, strict=False)]
            if datums:
                gradient = trainer.forward_backward(datums, "importance_sampling")
                rate = settings.learning_rate * (1 - step / settings.steps)
                trainer.optim_step(tinker.AdamParams(learning_rate=rate))
                gradient.result()
            sampler = trainer.save_weights_and_get_sampling_client().result()
            if run.record(step + 1, reward=fmean(each.reward for each in episodes), datums=len(datums)):
                break
        run.finish(before=before, after_sft=after_sft, after=evaluate(run, sampler, calculator, held_out))


if __name__ == "__main__":
    main()
