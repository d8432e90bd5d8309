"""Clients at work in trouble, beside a twin that has none."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from bench.crash import Kill, compare, have_answered
from bench.crash_serve import Installation, ServeInstallation

SEED = 5
TROUBLE_S = 8.0
I = TypeVar("I", bound=Installation)  # noqa: E741


def expect_only_delay(installation: I, twin: ServeInstallation, *troubles: Callable[[I], None]) -> None:
    """Each comes once all clients are at work; in the end no client saw an error, and no number is another."""

    def disturb(_: Installation, files: Sequence[Path]) -> list[Kill]:
        assert have_answered(files, 0.0), "the clients do not begin"
        for trouble in troubles:
            time.sleep(2.0)
            trouble(installation)
            if not have_answered(files, time.time()):  # the checks tell why
                break
        return []

    outcome = compare(installation, twin, SEED, disturb)
    assert not outcome.findings.counts, outcome.findings
