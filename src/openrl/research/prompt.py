"""What an agent is told at the beginning of a turn."""

from openrl.research.journal import AttemptRecord, StudyState
from openrl.research.kept import kept, kept_numbers
from openrl.research.study import AgentConfig, Study

_NUM_SHOWN = 60
_MAX_WORDS = 200


def write_prompt(study: Study, agent: AgentConfig, state: StudyState, researcher: int, program: str) -> str:
    """The words of program.md, the rules, what was tried, and what is left."""
    best = kept(study, state.attempts.values(), researcher)
    value = best[-1].value(study.metric) if best else None
    start = "the program as it was" if not best or not best[-1].researcher else f"attempt {best[-1].number}"
    lines = [
        *([program.strip(), ""] if program.strip() else []),
        f"# Your task, researcher {researcher}",
        "",
        f"Change the program in the working directory so that `{study.metric}` becomes "
        f"{'larger' if study.goal == 'maximize' else 'smaller'}. One idea a turn. When you end, the program is run by",
        f"`{' '.join(study.command)}`; do not run it yourself for the figure. A change that improves the metric is",
        "kept, any other is undone before your next turn.",
        "",
        f"- You may change, add and delete: {', '.join(f'`{each}`' for each in agent.editable)}. A turn that changes "
        "anything else is refused.",
        "- Write in a few words what you tried and why into the file that $OPENRL_WHY_FILE names.",
        f"- The directory has {start}: {study.metric} {_show(value)}. Your turns left, this one included: "
        f"{agent.attempts - _num_turns(state, researcher) + 1}.",
        f"- Left of the study's budget after this turn: {_budget_left(study, state)}.",
        "",
        "# What was tried",
        "",
        *_tried(study, state),
    ]
    return "\n".join(lines) + "\n"


def _tried(study: Study, state: StudyState) -> list[str]:
    tried = [each for _, each in sorted(state.attempts.items()) if not each.is_promotion and each.state != "proposing"]
    best = kept_numbers(study, tried)
    head = [f"| attempt | researcher | outcome | {study.metric} | what and why |", "|---|---|---|---|---|"]
    return head + [_row(study, each, each.number in best) for each in tried[-_NUM_SHOWN:]]


def _row(study: Study, each: AttemptRecord, is_kept: bool) -> str:
    outcome = "kept" if is_kept else each.state if each.state != "done" else "not better"
    words = " ".join((each.why or ("the program as it was" if not each.researcher else "")).split())[:_MAX_WORDS]
    why = f"{words} ({each.reason[:_MAX_WORDS]})" if each.reason else words
    cells = (
        str(each.number),
        str(each.researcher or ""),
        outcome,
        _show(each.value(study.metric)),
        why.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def _num_turns(state: StudyState, researcher: int) -> int:
    return sum(each.researcher == researcher and not each.is_promotion for each in state.attempts.values())


def _budget_left(study: Study, state: StudyState) -> str:
    budget, used = study.budget, state.usage
    parts = [f"{max(0, budget.attempts - state.num_runs)} runs"]
    if budget.gpu_seconds is not None:
        parts.append(f"{max(0.0, budget.gpu_seconds - used.gpu_seconds):.0f} GPU-seconds")
    if budget.tokens is not None:
        parts.append(f"{max(0.0, budget.tokens - used.tokens):.0f} tokens")
    return ", ".join(parts)


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
