"""Memory and processor time of the servers' processes over time."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READ_EVERY_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")
Pids = Callable[[], Mapping[str, Sequence[int]]]
"""The processes there are, by role."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one role's processes together."""

    at: float
    anonymous_mb: float
    rss_mb: float
    cpu_s: float


@dataclass(slots=True)
class ProcessWatch:
    """Reads every few seconds. Anonymous memory counts: files that are mapped are the kernel's to drop."""

    pids: Pids
    readings: dict[str, list[Reading]] = field(default_factory=dict[str, list[Reading]])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.read(time.time())
            await asyncio.sleep(READ_EVERY_S)

    def read(self, now: float) -> None:
        """Once."""
        for role, pids in self.pids().items():
            anonymous, rss = (sum(_memory_mb(pid, name) for pid in pids) for name in ("RssAnon:", "VmRSS:"))
            reading = Reading(now, anonymous, rss, sum(cpu_s(pid) for pid in pids))
            self.readings.setdefault(role, []).append(reading)

    def summary(self, start: float, end: float) -> dict[str, dict[str, Any]]:
        """By role, between two moments."""
        within = {role: [each for each in all_ if start <= each.at <= end] for role, all_ in self.readings.items()}
        return {role: _summary(readings) for role, readings in within.items() if len(readings) >= 6}


def _summary(readings: Sequence[Reading]) -> dict[str, Any]:
    third = len(readings) // 3
    first, last = (
        statistics.median(each.anonymous_mb for each in part) for part in (readings[:third], readings[-third:])
    )
    minutes = (readings[-1].at - readings[0].at) / 60
    slope = statistics.linear_regression([each.at / 60 for each in readings], [each.anonymous_mb for each in readings])
    return {
        "first_third_mb": round(first, 1),
        "last_third_mb": round(last, 1),
        "growth": round(last / first - 1, 4) if first else 0.0,
        "slope_mb_min": round(slope.slope, 2),
        "peak_rss_mb": round(max(each.rss_mb for each in readings), 1),
        "cores": round((readings[-1].cpu_s - readings[0].cpu_s) / 60 / minutes, 3),
    }


def _memory_mb(pid: int, name: str) -> float:
    """A line of /proc/PID/status; nothing for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def cpu_s(pid: int) -> float:
    """Processor time so far; nothing for a process that has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children(pid: int) -> list[int]:
    """Its child processes."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
