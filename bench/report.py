"""The history of benchmark results as a page and as plots.

    python -m bench.report        (make bench-report)

Reads bench/results/*.jsonl; writes README.md there, newest results first, and one plot for each benchmark.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from bench.records import RESULTS

COLUMNS = ("workload", "value", "unit", "limit", "ratio", "required", "model", "device", "commit", "at")


def rows_of(file: Path) -> list[dict[str, Any]]:
    """One row for each workload of each recorded run, oldest first."""
    rows: list[dict[str, Any]] = []
    for line in file.read_text().splitlines():
        result = json.loads(line)
        run = {name: result.get(name) for name in ("model", "device", "commit", "at")}
        # Other benchmarks record a single figure.
        rows += [{**part, **run} for part in result.get("parts", [result])]
    return rows


def markdown_page(results: Path) -> str:
    """All results as tables."""
    lines = ["# Benchmark results", ""]
    for file in sorted(results.glob("*.jsonl")):
        lines += [f"## {file.stem}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for row in reversed(rows_of(file)):
            cells = ["–" if row.get(name) is None else str(row[name]) for name in COLUMNS]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(results: Path) -> None:
    """The share of the limit over time, a line for each workload, model and device; else the value."""
    for file in sorted(results.glob("*.jsonl")):
        lines: dict[str, list[float]] = {}
        for row in rows_of(file):
            shown = row["value"] if row.get("ratio") is None else row["ratio"]
            unit = row["unit"] if row.get("ratio") is None else "of limit"
            lines.setdefault(f"{row['workload']}, {row['model']}, {row['device']} ({unit})", []).append(shown)
        figure, axes = plt.subplots(figsize=(10, 5))
        for name, values in lines.items():
            axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
        axes.set_title(file.stem)
        axes.set_xlabel("recorded run")
        axes.legend(fontsize="x-small")
        figure.savefig(results / f"{file.stem}.png", dpi=100)
        plt.close(figure)


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "README.md").write_text(markdown_page(RESULTS))
    plot(RESULTS)


if __name__ == "__main__":
    main()
