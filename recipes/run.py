"""What every recipe needs around its loop: its settings, a client, a record of what it measured."""

import argparse
import contextlib
import dataclasses
import json
import os
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import tinker
from tokenizers import Tokenizer

from openrl.research import Attempt

MODELS_DIR = Path.home() / ".cache" / "openrl" / "models"
RUNS_DIR = Path("recipe-runs")
METRICS_FILE, RESULT_FILE = "metrics.jsonl", "result.json"
Value = bool | int | float | str


class InvalidSettings(Exception):
    """A setting that the recipe does not have, or a value that it cannot have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that all recipes have; each adds its own. Their values are in its config.toml."""

    model: str
    """The server's name of the base model."""
    model_dir: str = ""
    """Directory with its tokenizer.json; where `openrl models fetch` puts it if empty."""
    seed: int = 0
    rank: int
    learning_rate: float
    steps: int

    @property
    def directory(self) -> Path:
        """Where the model's tokenizer is."""
        return Path(self.model_dir) if self.model_dir else MODELS_DIR / self.model


S = TypeVar("S", bound=Settings, covariant=True)


def settings_of(kind: type[S], values: Mapping[str, object]) -> S:
    """Checked settings; raises InvalidSettings."""
    wanted = get_type_hints(kind)
    for name, value in values.items():
        if name not in wanted:
            raise InvalidSettings(f"there is no setting {name!r}; there are {', '.join(wanted)}")
        accepted = (float, int) if wanted[name] is float else (wanted[name],)
        if type(value) not in accepted:
            raise InvalidSettings(f"{name} = {value!r}: it must be of type {wanted[name].__name__}")
    fields = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if missing := sorted(fields - values.keys()):
        raise InvalidSettings(f"no value for {', '.join(missing)}")
    checked: dict[str, Any] = dict(values)
    return kind(**checked)


def read_config(file: Path, size: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of config.toml, of its table `size`, and of NAME=VALUE pairs, the later before the earlier."""
    content = tomllib.loads(file.read_text())
    values = {name: value for name, value in content.items() if not isinstance(value, dict)}
    if size is not None and not isinstance(content.get(size), dict):
        sizes = [name for name, value in content.items() if isinstance(value, dict)]
        raise InvalidSettings(f"--size {size}: {file} has the sizes {', '.join(sizes) or 'none'}")
    values |= content[size] if size else {}
    for pair in overrides:
        name, sign, text = pair.partition("=")
        if not sign:
            raise InvalidSettings(f"--set {pair}: it must be NAME=VALUE")
        values[name] = _value(text)
    return values


def _value(text: str) -> object:
    """As in TOML; whatever is not TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


@dataclasses.dataclass(frozen=True)
class Run(Generic[S]):
    """One run of a recipe."""

    settings: S
    service: tinker.ServiceClient
    tokenizer: Tokenizer
    out: Path
    attempt: Attempt
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.began

    def record(self, step: int, **values: float) -> bool:
        """Note what was measured after so many steps; whether a study wants this run to end."""
        with (self.out / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(self.elapsed_s, 1), **values}) + "\n")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"{self.elapsed_s:5.0f} s  step {step:2}/{self.settings.steps}  {shown}", flush=True)
        return self.attempt.directory is not None and self.attempt.report(step, **values)

    def finish(self, **values: float) -> None:
        """Note the held-out figures of the whole run."""
        content = {"settings": dataclasses.asdict(self.settings), "seconds": round(self.elapsed_s, 1), "values": values}
        (self.out / RESULT_FILE).write_text(json.dumps(content, indent=2) + "\n")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"{self.elapsed_s:5.0f} s  held-out:  {shown}", flush=True)
        if self.attempt.directory is not None:
            self.attempt.report(self.settings.steps, **values)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that begins a sequence."""
        return self.tokenizer.encode(text).ids

    def encode_more(self, text: str) -> list[int]:
        """Tokens of a text that continues one."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """What the model wrote."""
        return self.tokenizer.decode(list(tokens))


@contextlib.contextmanager
def begin(kind: type[S], script: str) -> Generator[Run[S]]:
    """Read config.toml beside `script` and the command line; connect. An attempt of a study has the study's values."""
    home = Path(script).parent
    parser = argparse.ArgumentParser(prog=f"python -m recipes.{home.name}.train")
    parser.add_argument("--size", help="a table of config.toml, such as quick, over its other values")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; may be repeated")
    parser.add_argument("--out", type=Path, help=f"where metrics and result go; {RUNS_DIR}/{home.name}-SEED by default")
    arguments = parser.parse_args()
    try:
        settings = settings_of(kind, read_config(home / "config.toml", arguments.size, arguments.set))
        attempt = _attempt(settings)
        settings = settings_of(kind, {**attempt.params, "seed": attempt.seed})
    except InvalidSettings as error:
        parser.error(str(error))
    if not os.environ.get("TINKER_API_KEY"):
        parser.error("the variable TINKER_API_KEY is not set: paste the two lines that `openrl serve` prints")
    if not (tokenizer := settings.directory / "tokenizer.json").exists():
        parser.error(f"{tokenizer} does not exist: `openrl models fetch {settings.model}`, or --set model_dir=DIR")
    out: Path = arguments.out or attempt.directory or RUNS_DIR / f"{home.name}-{settings.seed}"
    out.mkdir(parents=True, exist_ok=True)
    (out / METRICS_FILE).unlink(missing_ok=True)
    os.environ.setdefault("TINKER_BASE_URL", "http://127.0.0.1:8000")
    with attempt.service_client() as service:  # closed at the end: its threads must not outlive the work
        yield Run(settings, service, Tokenizer.from_file(str(tokenizer)), out, attempt)


def _attempt(settings: Settings) -> Attempt:
    defaults: dict[str, Value] = dataclasses.asdict(settings)
    seed = defaults.pop("seed")
    assert isinstance(seed, int)
    return Attempt.current(defaults, seed)
