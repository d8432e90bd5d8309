"""How large a run of this recipe is."""

from dataclasses import dataclass

from recipes.run import Settings as CommonSettings


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """`steps` and `learning_rate` are those of reinforcement."""

    max_level: int
    """Hardest questions: 1 filter, 2 aggregate, 3 group and order, 4 join."""
    sft_learning_rate: float
    max_tokens: int
    """Longest query; gold queries stay well below."""
    sft_steps: int
    sft_batch: int
    """Questions in one supervised step."""
    rl_prompts: int
    """Questions in one reinforcement step."""
    rl_samples: int
    """Queries sampled for each of them: the group that an advantage is relative to."""
    eval_questions: int
    eval_samples: int
    """The k of pass@k."""
