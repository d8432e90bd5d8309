"""`openrl research`: studies of many attempts, run, watched and reported on."""

import asyncio
import json
import os
import signal
from collections.abc import Coroutine
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from openrl.cli.research_pages import PriceOption, serve
from openrl.cli.tables import print_table
from openrl.errors import InvalidRequest
from openrl.research.evidence import front_numbers
from openrl.research.jobs import KubernetesJobs, launch_id
from openrl.research.journal import ENDED, Journal, StudyState, read_state
from openrl.research.kept import kept_numbers, what_and_why
from openrl.research.keys import Keys, OwnKey, ProjectKeys
from openrl.research.launchers import Launcher, LocalProcesses
from openrl.research.meter import Meter, NoMeter, ServerMeter
from openrl.research.server_load import LoadSource, ServerLoad
from openrl.research.study import STOP_FILE, STUDY_FILE, Study, load_study
from openrl.research.template import TEMPLATE
from openrl.telemetry.logs import configure_logs

research_app = typer.Typer(help="Many attempts at one question: proposed, run at once, compared.", no_args_is_help=True)
research_app.command()(serve)

_KEY_GRACE_S = 120.0  # beyond an attempt's longest time

DirectoryArgument = Annotated[Path, typer.Argument(help="The study's directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON in place of a table.")]


@research_app.command()
def new(directory: DirectoryArgument) -> None:
    """Make a directory with a study.toml to fill in."""
    file = directory / STUDY_FILE
    if file.exists():
        raise InvalidRequest(f"{file} exists already")
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(TEMPLATE.replace("STUDY", directory.resolve().name.lower().replace("_", "-")))
    typer.echo(f"{file} written; `openrl research run {directory}` when it says what you want")


@research_app.command()
def run(directory: DirectoryArgument) -> None:
    """Run a study that has not begun; Ctrl-C interrupts it, and `resume` goes on."""
    if read_state(directory).attempts:
        raise InvalidRequest(
            f"the study in {directory} has begun; `openrl research resume {directory}` goes on with it"
        )
    _run(directory)


@research_app.command()
def resume(directory: DirectoryArgument) -> None:
    """Go on with a study that was stopped or cut off; nothing that has ended runs again."""
    if not read_state(directory).attempts:
        raise InvalidRequest(f"the study in {directory} has not begun; `openrl research run {directory}` begins it")
    _run(directory)


@research_app.command()
def stop(directory: DirectoryArgument) -> None:
    """Let a running study begin nothing more; its attempts end first."""
    load_study(directory)
    (directory / STOP_FILE).touch()
    typer.echo("it ends with the attempts that run now")


@research_app.command()
def status(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """What every attempt has come to."""
    study, state = load_study(directory), read_state(directory)
    if as_json:
        packing = None if state.packing is None else asdict(state.packing)
        shown = {"study": study.name, "metric": study.metric, "attempts": _status(study, state), "packing": packing}
        typer.echo(json.dumps(shown))
        return
    metrics, front = [each.metric for each in study.goals], front_numbers(study, state.attempts.values())
    rows = [
        (
            f"{number} (front)" if number in front else number, each.state, each.seed,
            *(each.value(metric) for metric in metrics), round(each.usage.gpu_seconds, 1),
            each.params if study.agent is None else what_and_why(each),
        )
        for number, each in sorted(state.attempts.items())
    ]  # fmt: skip
    last = "PARAMETERS" if study.agent is None else "RESEARCHER: WHAT AND WHY"
    print_table(("ATTEMPT", "STATE", "SEED", *(each.upper() for each in metrics), "GPU S", last), rows)
    used, budget = state.usage, study.budget
    typer.echo(
        f"{sum(each.state in ENDED for each in state.attempts.values())} of {budget.attempts} attempts, "
        f"{used.gpu_seconds:.0f} of {budget.gpu_seconds or 'unbounded'} GPU-seconds, "
        f"{used.tokens:.0f} of {budget.tokens or 'unbounded'} tokens"
    )
    typer.echo(_at_once(study, state))


@research_app.command()
def show(directory: DirectoryArgument, number: Annotated[int, typer.Argument(help="Of the attempt.")]) -> None:
    """Everything about one attempt: parameters, reports, the end of its log."""
    study, state = load_study(directory), read_state(directory)
    if number not in state.attempts:
        raise InvalidRequest(f"the study has no attempt {number}; its last is {state.next_number - 1}")
    each = state.attempts[number]
    typer.echo(f"attempt {number}, seed {each.seed}: {each.state}{f' ({each.reason})' if each.reason else ''}")
    typer.echo(json.dumps(each.params) if study.agent is None else what_and_why(each, 2000))
    names = sorted({name for _, values in each.reports for name in values} - {study.metric})
    rows = [(step, *(values.get(name, "") for name in (study.metric, *names))) for step, values in each.reports]
    print_table(("STEP", study.metric.upper(), *(name.upper() for name in names)), rows)
    log = directory / "attempts" / f"{number:04d}" / "log.txt"
    if log.exists():
        typer.echo("".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:]), nl=False)


@research_app.command()
def report(
    directory: DirectoryArgument,
    html: Annotated[Path | None, typer.Option(help="Write the page of the study to this file instead.")] = None,
    gpu_hour_price: PriceOption = None,
) -> None:
    """What the study found, as Markdown, or as one HTML file that needs nothing beside it."""
    _check_extra()
    from openrl.research.pages.document import html_report  # noqa: PLC0415  (needs the extra `research`)
    from openrl.research.report import markdown_report  # noqa: PLC0415

    study, state = load_study(directory), read_state(directory)
    if html is None:
        typer.echo(markdown_report(study, state), nl=False)
        return
    if not html.parent.is_dir():
        raise InvalidRequest(f"{html} cannot be written: {html.parent} is no directory")
    html.write_text(html_report(directory, study, state, gpu_hour_price), errors="backslashreplace")
    typer.echo(f"{html} written")


def _check_extra() -> None:
    if find_spec("optuna") is None:
        raise InvalidRequest("studies need Optuna: pip install 'openrl[research]'")


def _run(directory: Path) -> None:
    _check_extra()
    from openrl.research.runner import Runner  # noqa: PLC0415  (needs the extra `research`)

    study = load_study(directory)
    load = _load(study)
    configure_logs("research", "info")
    (directory / STOP_FILE).unlink(missing_ok=True)
    with Journal(directory) as journal:
        launcher = _launcher(directory, study, journal)
        runner = Runner(directory, study, journal, _meter(study), _keys(study), launcher, load)
        asyncio.run(_run_until_signalled(runner.run()))
    typer.echo(f"`openrl research report {directory}` says what was found")


async def _run_until_signalled(study: Coroutine[None, None, None]) -> None:
    running = asyncio.create_task(study)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(running.cancel, "interrupted"))
    await asyncio.wait((running,))
    if running.cancelled():
        typer.echo("interrupted: `openrl research resume` goes on", err=True)
        raise typer.Exit(130)
    running.result()


def _meter(study: Study) -> Meter:
    url, key = os.environ.get("TINKER_BASE_URL"), os.environ.get("TINKER_API_KEY")
    if url and key:
        return ServerMeter(url, key)
    if study.budget.gpu_seconds is not None or study.budget.tokens is not None:
        raise InvalidRequest(
            "a budget of GPU-seconds or tokens needs TINKER_BASE_URL and TINKER_API_KEY: who meters it"
        )
    return NoMeter()


def _load(study: Study) -> LoadSource | None:
    if study.parallel != "auto":
        return None
    url, key = os.environ.get("TINKER_BASE_URL"), os.environ.get("TINKER_API_KEY")
    if not url or not key:
        raise InvalidRequest('parallel = "auto" needs TINKER_BASE_URL and TINKER_API_KEY: whose load it goes by')
    return ServerLoad(url, key)


def _keys(study: Study) -> Keys:
    """What an agent wrote gets a key of its attempt's project; other attempts have the caller's."""
    url, key = os.environ.get("TINKER_BASE_URL"), os.environ.get("TINKER_API_KEY")
    if study.agent is None or not url or not key:
        return OwnKey()
    return ProjectKeys(url, key, study.attempt_timeout_s + _KEY_GRACE_S)


def _at_once(study: Study, state: StudyState) -> str:
    """How many run at once, how many may, and why."""
    running = sum(each.state == "running" for each in state.attempts.values())
    if study.parallel != "auto":
        return f"{running} running, {study.parallel} at once"
    if state.packing is None:
        return f"{running} running, up to {study.max_parallel} at once as the server has room"
    return f"{running} running, {state.packing.wanted} of up to {study.max_parallel} at once: {state.packing.why}"


def _launcher(directory: Path, study: Study, journal: Journal) -> Launcher:
    if study.kubernetes is None:
        return LocalProcesses(study)
    is_new = not journal.state.attempts
    jobs = KubernetesJobs(study, study.kubernetes, directory, launch_id(directory, is_new))
    jobs.check()
    return jobs


def _status(study: Study, state: StudyState) -> list[dict[str, object]]:
    front = front_numbers(study, state.attempts.values())
    kept = kept_numbers(study, state.attempts.values()) if study.agent is not None else set[int]()
    return [
        {
            "attempt": each.number,
            "state": each.state,
            "reason": each.reason,
            "seed": each.seed,
            "is_promotion": each.is_promotion,
            "params": each.params,
            "value": each.value(study.metric),
            "gpu_seconds": round(each.usage.gpu_seconds, 1),
            "tokens": each.usage.tokens,
            "researcher": each.researcher,
            "is_kept": each.number in kept,
            "why": each.why,
            "values": {goal.metric: each.value(goal.metric) for goal in study.goals},
            "is_on_front": each.number in front,
        }
        for _, each in sorted(state.attempts.items())
    ]
