"""Writes docs/sdk-coverage.md: each public method and command of the SDK, its endpoints, the test, the result.

Runs the tests that carry the mark `sdk`. A method's endpoints are those that the server answered, during its tests,
to requests with the SDK's `x-sdk-method` header; a command's are all that its test caused.
"""

import inspect
import json
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
import tinker
from tinker.cli.__main__ import main_cli
from tinker.lib import public_interfaces

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "sdk-coverage.md"
CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")
NOT_FOR_USERS = {
    "ServiceClient.holder": "the SDK's own connection; a property",
    "SamplingClient.create": "the SDK's own constructor, behind create_sampling_client",
    "SamplingClient.on_queue_state_change": "called by the SDK when a queue's state changes",
}
BACKGROUND = (
    "client/config",
    "client/dynamic_config",
    "create_session",
    "session_heartbeat",
    "telemetry",
    "auth/token",
)


@dataclass(slots=True)
class Evidence:
    """What the tests showed of one name."""

    tests: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])
    endpoints: set[str] = field(default_factory=set[str])


class Recorder:
    """A pytest plugin: which test of which name passed, and what the server answered meanwhile."""

    def __init__(self) -> None:
        self.evidence: dict[str, Evidence] = defaultdict(Evidence)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        names = [name for mark in item.iter_markers("sdk") for name in mark.args]
        log = _server_log(item)
        start = log.stat().st_size if log else 0
        passed = False
        try:
            result = yield
            passed = True
            return result
        finally:
            answers = list(_answers(log, start)) if log else []
            for name in names:
                self._note(name, item.nodeid, passed, answers)

    def _note(self, name: str, test: str, passed: bool, answers: list[tuple[str, str]]) -> None:
        evidence = self.evidence[name]
        evidence.tests.append(test)
        if not passed:
            evidence.failed.append(test)
        is_command = name.startswith("tinker ")
        evidence.endpoints |= {endpoint for endpoint, sdk_method in answers if is_command or sdk_method == name}


def _server_log(item: pytest.Item) -> Path | None:
    server = getattr(item, "funcargs", {}).get("server")
    if server is None:
        return None
    return server.data_dir / "server.log"


def _answers(log: Path, start: int) -> Iterator[tuple[str, str]]:
    """(endpoint, SDK method without `_async`) of each answer logged since `start`, without background traffic."""
    with log.open("rb") as lines:
        lines.seek(start)
        for line in lines:
            if b'"answered"' not in line:
                continue
            answer = json.loads(line)
            route = answer["route"].removeprefix("/api/v1/")
            if route not in BACKGROUND and route != "unmatched":
                yield f"{answer['method']} {route}", answer["sdk"].removesuffix("_async")


def public_methods() -> list[str]:
    """`Class.method` of the five clients; the deprecated `_async` twins call the same endpoints."""
    names: list[str] = []
    for client in CLIENTS:
        kind = getattr(public_interfaces, client)
        members = (name for name, _ in inspect.getmembers(kind) if not name.startswith("_"))
        names += [f"{client}.{name}" for name in members if not name.endswith("_async")]
    return [name for name in names if name not in NOT_FOR_USERS]


def commands(group: click.Group = main_cli, prefix: str = "tinker") -> list[str]:
    """`tinker run list` and the like."""
    context = click.Context(group)
    found: list[str] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = f"{prefix} {name}"
        found += commands(command, path) if isinstance(command, click.Group) else [path]
    return found


def page(evidence: dict[str, Evidence]) -> str:
    """The whole page."""
    methods, lines = public_methods(), commands()
    shown = sum(_is_shown(evidence, name) for name in (*methods, *lines))
    parts = [
        f"# Coverage of the tinker SDK {tinker.__version__}",
        "Made by `make sdk-coverage`: it runs the tests named here, with the real SDK against a real server.",
        f"**{shown} of {len(methods) + len(lines)}** public methods and commands are shown to work.",
        "## Methods\n\n" + _table(methods, evidence),
        "## Commands\n\n" + _table(lines, evidence),
        "## Not counted\n\n" + "\n".join(f"* `{name}`: {reason}." for name, reason in NOT_FOR_USERS.items()),
        "Each method's `_async` twin, deprecated in 0.38, calls the same endpoints.",
    ]
    return "\n\n".join(parts) + "\n"


def _is_shown(evidence: dict[str, Evidence], name: str) -> bool:
    return name in evidence and not evidence[name].failed


def _table(names: list[str], evidence: dict[str, Evidence]) -> str:
    rows = [_row(name, evidence.get(name)) for name in names]
    return "\n".join(["| name | endpoints | test | result |", "|---|---|---|---|", *rows])


def _row(name: str, evidence: Evidence | None) -> str:
    if evidence is None:
        return f"| `{name}` | | none | **missing** |"
    endpoints = "<br>".join(f"`{endpoint}`" for endpoint in sorted(evidence.endpoints)) or "none"
    tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in dict.fromkeys(evidence.tests))
    return f"| `{name}` | {endpoints} | {tests} | {'**failed**' if evidence.failed else 'passed'} |"


def main() -> int:
    os.environ["OPENRL_LOG_LEVEL"] = "debug"
    recorder = Recorder()
    options = ["-q", "-m", "sdk", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the SDK is imported already
    status = pytest.main([*options, str(ROOT / "tests" / "sdk")], plugins=[recorder])
    unknown = recorder.evidence.keys() - {*public_methods(), *commands()}
    if unknown:
        print(f"marks name what the SDK does not have: {', '.join(sorted(unknown))}", file=sys.stderr)
    PAGE.write_text(page(recorder.evidence))
    print(f"wrote {PAGE}")
    return int(status) or bool(unknown)


if __name__ == "__main__":
    sys.exit(main())
