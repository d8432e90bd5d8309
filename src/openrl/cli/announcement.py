"""What a person sees while the server starts, and once it is there."""

from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@dataclass(frozen=True, slots=True)
class Announcement:
    """How clients reach the server."""

    url: str
    key: str
    base_models: tuple[str, ...]

    def show(self) -> None:
        """Print it on standard output, as lines that a shell can take."""
        # Not wrapped and not coloured: the two lines are there to be copied.
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"OpenRL serves {', '.join(self.base_models)} at {self.url}\n")
        console.print(f"export TINKER_BASE_URL={self.url}")
        console.print(f"export TINKER_API_KEY={self.key}")


class Starting:
    """A spinner with the time that loading has taken, on standard error; nothing where that is no terminal."""

    def __init__(self, base_models: tuple[str, ...]) -> None:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._progress.add_task(f"loading {', '.join(base_models)}", total=None)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
