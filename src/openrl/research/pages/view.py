"""A study as the JSON that its page draws."""

import math
from collections.abc import Mapping

from openrl.research.evidence import Comparison, Entry, compare, entries
from openrl.research.journal import ENDED, AttemptRecord, StudyState
from openrl.research.study import Choice, Range, Study

_DIGITS = 6  # significant ones of values: more than a screen shows, half of the bytes


def study_view(
    study: Study, state: StudyState, *, is_running: bool, gpu_hour_price: float | None = None
) -> dict[str, object]:
    """What is known of the study as a whole."""
    used = state.usage
    return {
        "name": study.name,
        "state": study_state(state, is_running=is_running),
        "metric": study.metric,
        "final_metric": study.final_metric,
        "goal": study.goal,
        "command": list(study.command),
        "proposer": study.proposer.kind,
        "parallel": study.parallel,
        "max_parallel": study.max_parallel,
        "packing": None if state.packing is None else {"wanted": state.packing.wanted, "why": state.packing.why},
        "seeds": list(study.seeds),
        "space": [_axis(name, space) for name, space in study.space.items()],
        "defaults": study.defaults or None,
        "budget": study.budget.model_dump(),
        "used": {
            "attempts": len(state.attempts),
            "gpu_seconds": _number(used.gpu_seconds),
            "tokens": _number(used.tokens),
            "cost": None if gpu_hour_price is None else _number(used.gpu_seconds / 3600 * gpu_hour_price),
        },
        "gpu_hour_price": gpu_hour_price,
        "best": _best(study, state),
    }


def study_state(state: StudyState, *, is_running: bool) -> str:
    """In one word: new, running, interrupted or ended."""
    if is_running:
        return "running"
    if not state.attempts:
        return "new"
    return "ended" if all(each.state in ENDED for each in state.attempts.values()) else "interrupted"


def findings_view(study: Study, state: StudyState, importances: Mapping[str, float]) -> dict[str, object]:
    """The best against the defaults, and what mattered."""
    found = compare(study, list(state.attempts.values()))
    return {
        "importances": [{"name": name, "share": _number(share)} for name, share in importances.items()],
        "comparison": None if found is None else _comparison(study, found),
    }


def _axis(name: str, space: Choice | Range) -> dict[str, object]:
    if isinstance(space, Choice):
        return {"name": name, "kind": "choice", "values": list(space.values)}
    return {"name": name, "kind": "range", "low": space.low, "high": space.high, "log": space.log}


def attempt_view(study: Study, each: AttemptRecord) -> dict[str, object]:
    """An attempt with its reports."""
    names = dict.fromkeys(name for _, values in each.reports for name in values)
    return {
        "number": each.number,
        "state": each.state,
        "reason": each.reason,
        "seed": each.seed,
        "is_promotion": each.is_promotion,
        "params": {name: value if isinstance(value, str) else _number(value) for name, value in each.params.items()},
        "value": _number(each.value(study.metric)),
        "final_value": _number(each.value(study.final_metric)) if study.final_metric else None,
        "gpu_seconds": _number(each.usage.gpu_seconds),
        "tokens": _number(each.usage.tokens),
        "started_at": each.started_at,
        "ended_at": each.ended_at,
        "steps": [step for step, _ in each.reports],
        "curves": {name: [_number(values.get(name)) for _, values in each.reports] for name in names},
    }


def _best(study: Study, state: StudyState) -> dict[str, object] | None:
    """The first of the report's leaderboard."""
    board = entries(study, state.attempts.values())
    return _entry(board[0]) if board else None


def _entry(entry: Entry) -> dict[str, object]:
    return {
        "attempts": [each.number for each in entry.attempts],
        "mean": _number(entry.mean),
        "values": [_number(value) for value in entry.values],
        "final_values": [_number(value) for value in entry.final_values],
    }


def _comparison(study: Study, found: Comparison) -> dict[str, object]:
    return {
        "metric": study.final_metric or study.metric,
        "best": _entry(found.best),
        "default": _entry(found.default),
        "difference": _number(found.difference),
        "interval": [_number(end) for end in found.interval],
        "p_value": _number(found.p_value),
        "num_choices": found.num_choices,
        "holds": found.holds,
    }


def _number(value: bool | float | None) -> bool | float | None:
    """As JSON carries it: what is not finite has no place there."""
    if value is None or isinstance(value, bool | int):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
