"""Asynchronous reinforcement learning: one thread samples ahead while the other trains, within a bound of staleness."""

import random
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import tinker

from recipes.arithmetic.tasks import Question, make_questions
from recipes.arithmetic.train import Arithmetic, Group, ask, mean_reward
from recipes.run import InvalidSettings, Run, begin

Loss = Literal["importance_sampling", "ppo", "cispo"]


@dataclass(frozen=True, kw_only=True)
class OffPolicy(Arithmetic):
    """Settings of this recipe."""

    max_staleness: int
    """Steps that the weights of a batch may be behind those that it trains; 0 is the synchronous loop."""
    loss: str
    reward_s: float
    """How long an environment takes to judge a batch."""

    @property
    def loss_name(self) -> Loss:
        """Checked; raises InvalidSettings."""
        for name in get_args(Loss):
            if name == self.loss:
                return name
        raise InvalidSettings(f"loss = {self.loss!r}: it must be one of {', '.join(get_args(Loss))}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights to sample from, and how many steps they have seen."""

    sampler: tinker.SamplingClient
    step: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Graded answers, and the step whose weights gave them."""

    groups: list[Group]
    sampled_at: int


class Loop:
    """Two threads: the pool's samples and grades, the caller's trains."""

    def __init__(self, run: Run[OffPolicy], trainer: tinker.TrainingClient, train: list[Question]) -> None:
        self.run, self.trainer, self.train = run, trainer, train
        self.latest = Snapshot(self.snapshot(), 0)  # of a new adapter: the base model
        self.rng = random.Random(run.settings.seed)

    def snapshot(self) -> tinker.SamplingClient:
        """The trainer's weights of this moment."""
        return self.trainer.save_weights_and_get_sampling_client().result()

    def sample(self, number: int) -> Batch:
        """Batch `number`, from the latest weights when its turn comes."""
        settings, snapshot = self.run.settings, self.latest
        questions = self.rng.sample(self.train, settings.prompts)
        groups = ask(self.run, snapshot.sampler, questions, seed=number * settings.prompts)
        time.sleep(settings.reward_s)
        return Batch(groups, snapshot.step)

    def learn(self, batch: Batch, step: int) -> None:
        """One step; the loss corrects for the weights that sampled the batch."""
        settings, ratio = self.run.settings, 1.0
        if datums := [datum for group in batch.groups for datum in group.datums()]:
            gradient = self.trainer.forward_backward(datums, settings.loss_name)
            rate = settings.learning_rate * (1 - step / settings.steps)
            self.trainer.optim_step(tinker.AdamParams(learning_rate=rate))
            ratio = gradient.result().metrics["ratio:max"]
        self.latest = Snapshot(self.snapshot(), step + 1)
        staleness = step - batch.sampled_at
        self.run.record(step + 1, reward=mean_reward(batch.groups), staleness=staleness, ratio_max=ratio)

    def go(self) -> None:
        """Batch n is asked for when step n - max_staleness is done, so it is at most that stale when its step comes."""
        settings, ahead = self.run.settings, deque[Future[Batch]]()
        with ThreadPoolExecutor(1) as pool:
            for step in range(settings.steps):
                for number in range(step + len(ahead), min(step + settings.max_staleness + 1, settings.steps)):
                    ahead.append(pool.submit(self.sample, number))
                self.learn(ahead.popleft().result(), step)


def main() -> None:
    """Sampler and trainer side by side; measured on held-out sums before and after, and by the clock."""
    with begin(OffPolicy, __file__) as run:
        settings = run.settings
        questions = make_questions(settings.task, random.Random(settings.seed))
        held_out, train = questions[: settings.held_out], questions[settings.held_out :]
        trainer = run.service.create_lora_training_client(
            settings.model, settings.rank, settings.seed, train_unembed=False
        ).result()
        loop = Loop(run, trainer, train)
        before = mean_reward(ask(run, loop.latest.sampler, held_out, 0))
        began = time.monotonic()
        loop.go()
        train_s = time.monotonic() - began
        run.finish(before=before, after=mean_reward(ask(run, loop.latest.sampler, held_out, 0)), train_s=train_s)


if __name__ == "__main__":
    main()
