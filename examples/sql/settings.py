"""How large a run of the demo is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides how long the demo takes and how far it gets."""

    max_level: int
    """Hardest questions: 1 filter, 2 aggregate, 3 group and order, 4 join."""
    rank: int
    learning_rate: float
    """Of the warm-up."""
    rl_learning_rate: float
    max_tokens: int
    """Longest query; gold queries stay well below."""
    sft_steps: int
    sft_batch: int
    """Questions in one supervised step."""
    rl_steps: int
    rl_prompts: int
    """Questions in one reinforcement step."""
    rl_samples: int
    """Queries sampled for each of them: the group that an advantage is relative to."""
    eval_questions: int
    eval_samples: int
    """The k of pass@k."""


QUICK = Settings(
    max_level=3,
    rank=16,
    learning_rate=1e-3,
    rl_learning_rate=2e-4,
    max_tokens=20,
    sft_steps=14,
    sft_batch=8,
    rl_steps=10,
    rl_prompts=5,
    rl_samples=8,
    eval_questions=34,
    eval_samples=4,
)
"""A few minutes on two CPU cores."""

FULL = Settings(
    max_level=4,
    rank=16,
    learning_rate=1e-3,
    rl_learning_rate=1e-4,
    max_tokens=44,
    sft_steps=24,
    sft_batch=8,
    rl_steps=20,
    rl_prompts=20,
    rl_samples=6,
    eval_questions=80,
    eval_samples=4,
)
"""The larger size: more steps, and joins. Each reinforcement step asks one question of every template: with fewer, a
step moves the policy away from the templates it leaves out."""
