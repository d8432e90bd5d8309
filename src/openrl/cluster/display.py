"""Shows a cluster to people: a table that stays at the bottom, and the pods' lines above it."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from openrl.cluster.pod_runner import PodRunner

COLORS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


class Display:
    """On a terminal the table is drawn again twice a second; elsewhere a line tells of every change."""

    def __init__(self, console: Console, pods: Mapping[str, PodRunner], *, show_logs: bool = True) -> None:
        self._console = console
        self._pods = pods
        self._show_logs = show_logs
        self._seen: dict[str, tuple[str, str, int]] = {}
        self._colors: dict[str, str] = {}
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def lines(self, pod: str, output: bytes) -> None:
        """Print what a pod has written, each line with its name."""
        if not self._show_logs:
            return
        color = self._colors.setdefault(pod, COLORS[len(self._colors) % len(COLORS)])
        for line in output.decode(errors="replace").splitlines():
            self._console.print(Text.assemble((f"{pod} | ", color), line), soft_wrap=True)

    def changed(self) -> None:
        """Tell of pods whose state is another one, where there is no table."""
        for pod in list(self._pods.values()):
            row = (pod.phase, _ready(pod), pod.restarts)
            if self._seen.get(pod.plan.name) != row:
                self._seen[pod.plan.name] = row
                if not self._console.is_terminal:
                    reason = f" ({pod.reason})" if pod.reason else ""
                    text = f"{pod.plan.name}: {pod.phase}, ready {row[1]}, restarts {pod.restarts}{reason}"
                    self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _table(self) -> Table:
        table = Table("pod", "phase", "ready", "restarts", "age", "address", "last trouble", box=None, pad_edge=False)
        for pod in sorted(self._pods.values(), key=lambda each: each.plan.name):
            cells = (pod.phase, _ready(pod), str(pod.restarts), pod_age(pod, time.monotonic()), pod.address, pod.reason)
            table.add_row(pod.plan.name, *map(Text, cells))
        return table


def pod_age(pod: PodRunner, now: float) -> str:
    """In the largest unit that fits."""
    seconds = int(now - pod.started_at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _ready(pod: PodRunner) -> str:
    containers = pod.containers
    return f"{sum(each.is_ready for each in containers)}/{len(containers)}"
