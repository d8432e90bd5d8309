"""A study's findings as text."""

import json
import statistics

from openrl.research.evidence import Comparison, Entry, compare, entries, is_default
from openrl.research.journal import StudyState
from openrl.research.kept import kept_numbers, what_and_why
from openrl.research.proposer import Proposer
from openrl.research.study import Study

_NUM_SHOWN = 20
_MAX_WORDS = 1000


def markdown_report(study: Study, state: StudyState) -> str:
    """Leaderboard, comparison with the defaults, importance of parameters, and what did not end well."""
    attempts = list(state.attempts.values())
    board = entries(study, attempts)
    lines = [f"# {study.name}", "", _summary(study, state), ""]
    if board:
        lines += ["## Leaderboard", "", *_table(study, board), ""]
    found = compare(study, attempts)
    if found is not None:
        lines += ["## The best against the defaults", "", *_comparison(study, found), ""]
    importances = _importances(study, state)
    if importances:
        rows = [f"| {name} | {share:.0%} |" for name, share in importances.items()]
        lines += ["## What mattered", "", "| parameter | share of the variance (fANOVA) |", "|---|---|", *rows, ""]
    if study.agent is not None:
        lines += ["## What was tried and why", "", *_tried(study, state), ""]
    lost = [each for each in attempts if each.state in ("failed", "stopped")] if study.agent is None else []
    if lost:
        rows = [f"| {each.number} | {each.state} | {each.reason} | `{json.dumps(each.params)}` |" for each in lost]
        lines += ["## Stopped and failed", "", "| attempt | state | why | parameters |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _summary(study: Study, state: StudyState) -> str:
    counts = {each: sum(a.state == each for a in state.attempts.values()) for each in ("done", "stopped", "failed")}
    used = state.usage
    return (
        f"{len(state.attempts)} attempts ({', '.join(f'{count} {name}' for name, count in counts.items())}), "
        f"{used.gpu_seconds:.0f} GPU-seconds, {used.tokens:,.0f} tokens. Metric: {study.metric} ({study.goal})."
    )


def _table(study: Study, board: list[Entry]) -> list[str]:
    names = list(study.space) or ["researcher: what and why"]
    head = (
        f"| | {study.metric} | seeds | {study.final_metric or study.metric}, final | {' | '.join(names)} | attempts |"
    )
    rows = [head, "|" + "---|" * (len(names) + 5)]
    for place, entry in enumerate(board[:_NUM_SHOWN], 1):
        numbers = ", ".join(str(each.number) for each in entry.attempts)
        cells = [
            f"{place}{' (default)' if is_default(study, entry.attempts[0]) else ''}",
            _spread(entry.values), len(entry.values), _spread(entry.final_values),
            *(_choice(study, entry)), numbers,
        ]  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return rows


def _choice(study: Study, entry: Entry) -> list[object]:
    if study.agent is not None:
        return [what_and_why(entry.attempts[0]).replace("|", "\\|")]
    return [entry.params[name] for name in study.space]


def _tried(study: Study, state: StudyState) -> list[str]:
    """Every turn of every researcher."""
    kept = kept_numbers(study, state.attempts.values())
    rows = ["| attempt | outcome | value | researcher: what and why |", "|---|---|---|---|"]
    for number, each in sorted(state.attempts.items()):
        if not each.is_promotion:
            value = each.value(study.metric)
            outcome = "kept" if number in kept else "not better" if each.state == "done" else each.state
            words = what_and_why(each, _MAX_WORDS).replace("|", "\\|")
            rows.append(f"| {number} | {outcome} | {'' if value is None else f'{value:.4g}'} | {words} |")
    return rows


def _spread(values: tuple[float, ...]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def _comparison(study: Study, found: Comparison) -> list[str]:
    low, high = found.interval
    verdict = "is better beyond chance" if found.holds else "is **not** shown to be better"
    return [
        f"The best by {study.metric} {verdict}: by {found.difference:+.4g} on {study.final_metric or study.metric} "
        f"(95 % interval of bootstrap resamples of seeds {low:+.4g} to {high:+.4g}; p = {found.p_value:.2g}, "
        f"Welch's t-test times {found.num_choices} choices).",
    ]


def _importances(study: Study, state: StudyState) -> dict[str, float]:
    proposer = Proposer(study)
    proposer.restore(state.attempts)
    return proposer.importances()
