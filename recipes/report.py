"""Tables and curves of several runs of one recipe: mean and spread over seeds.

python -m recipes.report recipe-runs/arithmetic-* --curve reward --into recipes/arithmetic/curve.svg
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from recipes.run import METRICS_FILE, RESULT_FILE

matplotlib.use("agg")


def read_runs(directories: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of finished runs, with their steps, ordered by seed."""
    runs: list[dict[str, Any]] = []
    for directory in directories:
        result = json.loads((directory / RESULT_FILE).read_text())
        steps = [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]
        runs.append({**result, "steps": steps})
    return sorted(runs, key=lambda run: run["settings"]["seed"])


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each figure, a column for each seed, then mean and sample standard deviation."""
    seeds = [f"seed {run['settings']['seed']}" for run in runs]
    lines = ["| | " + " | ".join([*seeds, "mean ± spread"]) + " |", "|---|" + "---|" * (len(runs) + 1)]
    columns = [{**run["values"], "seconds": run["seconds"]} for run in runs]
    for name in columns[0]:
        values = [column[name] for column in columns]
        spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
        shown = [f"{value:.3g}" for value in values]
        lines.append("| " + " | ".join([name, *shown, f"**{statistics.fmean(values):.3g}{spread}**"]) + " |")
    return "\n".join(lines)


def draw(runs: Sequence[dict[str, Any]], metric: str, file: Path) -> None:
    """One line a seed."""
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a tenth of the size
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        steps = run["steps"]
        axes.plot([s["step"] for s in steps], [s[metric] for s in steps], label=f"seed {run['settings']['seed']}")
    axes.set(xlabel="step", ylabel=metric.replace("_", " "))
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Print the table, draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--curve", help="the metric to draw")
    parser.add_argument("--into", type=Path, help="an .svg or .png file")
    arguments = parser.parse_args()
    runs = read_runs(arguments.directories)
    print(table(runs))
    if arguments.curve and arguments.into:
        draw(runs, arguments.curve, arguments.into)


if __name__ == "__main__":
    main()
