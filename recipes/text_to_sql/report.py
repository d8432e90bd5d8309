"""Writes what the demo found: a table, a picture of the curves and a JSON file."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from .evaluation import Evaluation
from .portability import Portability
from .progress import StepRecord
from .settings import Settings

matplotlib.use("agg")


def results_table(evaluations: Mapping[str, Evaluation], num_questions: int) -> Table:
    """Held-out accuracy of each stage, overall and by level."""
    levels = sorted({level for evaluation in evaluations.values() for level in evaluation.by_level})
    k = next(iter(evaluations.values())).k
    table = Table(title=f"Execution accuracy on {num_questions} held-out questions (unseen schemas and wordings)")
    table.add_column("")
    for heading in ("greedy", f"pass@{k}", *(f"level {level}" for level in levels)):
        table.add_column(heading, justify="right")
    for stage, evaluation in evaluations.items():
        shares = (evaluation.greedy, evaluation.pass_at_k, *(evaluation.by_level[level] for level in levels))
        table.add_row(stage, *(f"{share:.0%}" for share in shares))
    return table


def write_json(
    file: Path,
    settings: Settings,
    records: Sequence[StepRecord],
    evaluations: Mapping[str, Evaluation],
    portability: Portability | None,
    total_s: float,
) -> None:
    """Everything that was measured."""
    content: dict[str, Any] = {
        "seed": settings.seed,
        "total_s": round(total_s, 1),
        "settings": dataclasses.asdict(settings),
        "evaluations": {stage: dataclasses.asdict(evaluation) for stage, evaluation in evaluations.items()},
        "steps": [dataclasses.asdict(record) for record in records],
        "portability": dataclasses.asdict(portability) if portability else None,
    }
    file.write_text(json.dumps(content, indent=2))


def write_curves(file: Path, records: Sequence[StepRecord], evaluations: Mapping[str, Evaluation]) -> None:
    """Three panels: loss of the warm-up, reward of the reinforcement, held-out accuracy."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, reward, accuracy = figure.subplots(1, 3)
    warm_up = [record for record in records if record.accuracy is None]
    rl = [record for record in records if record.accuracy is not None]
    loss.plot([r.step for r in warm_up], [r.value for r in warm_up], marker="o", markersize=3)
    loss.set(title="Supervised warm-up", xlabel="step", ylabel="loss per token", ylim=(0, None))
    reward.plot([r.step for r in rl], [r.value for r in rl], marker="o", markersize=3)
    reward.set(title="Reinforcement learning", xlabel="step", ylabel="mean reward", ylim=(0, 1))
    stages = list(evaluations)
    places = range(len(stages))
    accuracy.bar([p - 0.2 for p in places], [evaluations[s].greedy for s in stages], 0.4, label="greedy")
    passed = [evaluations[s].pass_at_k for s in stages]
    accuracy.bar([p + 0.2 for p in places], passed, 0.4, label=f"pass@{evaluations[stages[0]].k}")
    accuracy.set(title="Held-out schemas and wordings", ylim=(0, 1), xticks=list(places))
    accuracy.set_xticklabels(stages)
    accuracy.legend()
    figure.savefig(file, dpi=120)
