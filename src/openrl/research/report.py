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
    compared = [compare(study, attempts, objective) for objective in range(len(study.goals))]
    found = [_comparison(study, each) for each in compared if each is not None]
    if found:
        lines += ["## The best against the defaults", "", *found, ""]
    lines += _what_mattered(study, state)
    if study.agent is not None:
        lines += ["## What was tried and why", "", *_tried(study, state), ""]
    lines += _at_once(study, state)
    lost = [each for each in attempts if each.state in ("failed", "stopped")] if study.agent is None else []
    if lost:
        rows = [f"| {each.number} | {each.state} | {each.reason} | `{json.dumps(each.params)}` |" for each in lost]
        lines += ["## Stopped and failed", "", "| attempt | state | why | parameters |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _at_once(study: Study, state: StudyState) -> list[str]:
    """How many attempts the server had room for."""
    if not state.packings:
        return []
    began_at = state.packings[0].at
    rows = [
        f"| {(each.at - began_at) / 60:.1f} | {each.wanted} | {each.num_running} | {each.why} |"
        for each in state.packings[-_NUM_SHOWN:]
    ]
    head = ["| minute | wanted | running then | why |", "|---|---|---|---|"]
    return [f"## How many at once (up to {study.max_parallel})", "", *head, *rows, ""]


def _summary(study: Study, state: StudyState) -> str:
    counts = {each: sum(a.state == each for a in state.attempts.values()) for each in ("done", "stopped", "failed")}
    used = state.usage
    metrics = ", ".join(f"{each.metric} ({each.goal})" for each in study.goals)
    return (
        f"{len(state.attempts)} attempts ({', '.join(f'{count} {name}' for name, count in counts.items())}), "
        f"{used.gpu_seconds:.0f} GPU-seconds, {used.tokens:,.0f} tokens. "
        f"{'Metric' if len(study.goals) == 1 else 'Metrics'}: {metrics}."
    )


def _table(study: Study, board: list[Entry]) -> list[str]:
    names = list(study.space) or ["researcher: what and why"]
    figures = [
        name for each in study.goals for name in (each.metric, f"{each.final_metric or each.metric}, final")
    ]  # fmt: skip
    head = ["", *figures, "seeds", *names, "attempts"]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for place, entry in enumerate(board[:_NUM_SHOWN], 1):
        numbers = ", ".join(str(each.number) for each in entry.attempts)
        mark = " (default)" if is_default(study, entry.attempts[0]) else ""
        front = " (front)" if entry.is_front else ""
        spreads = [
            _spread(entry.values_of(name))
            for each in study.goals
            for name in (each.metric, each.final_metric or each.metric)
        ]
        cells = [f"{place}{front}{mark}", *spreads, len(entry.values), *_choice(study, entry), numbers]
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


def _comparison(study: Study, found: Comparison) -> str:
    low, high = found.interval
    verdict = "is better beyond chance" if found.holds else "is **not** shown to be better"
    times = f"{found.num_choices} choices" + (f" and {len(study.goals)} objectives" if study.objectives else "")
    return (
        f"The best by {found.objective.metric} {verdict}: by {found.difference:+.4g} on "
        f"{found.objective.final_metric or found.objective.metric} "
        f"(95 % interval of bootstrap resamples of seeds {low:+.4g} to {high:+.4g}; p = {found.p_value:.2g}, "
        f"Welch's t-test times {times}).\n"
    )


def _what_mattered(study: Study, state: StudyState) -> list[str]:
    proposer = Proposer(study)
    proposer.restore(state.attempts)
    shares = [proposer.importances(objective) for objective in range(len(study.goals))]
    if not all(shares):
        return []
    names = sorted(shares[0], key=lambda name: -shares[0][name])
    metrics = " | ".join(f"importance for {each.metric} (PED-ANOVA)" for each in study.goals)
    rows = [f"| {name} | {' | '.join(f'{each[name]:.0%}' for each in shares)} |" for name in names]
    return ["## What mattered", "", f"| parameter | {metrics} |", "|---|" + "---|" * len(shares), *rows, ""]
