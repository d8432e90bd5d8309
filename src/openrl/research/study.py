"""What a study is: the file study.toml, checked."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from openrl.errors import InvalidRequest
from openrl.research.job import KubernetesConfig

STUDY_FILE = "study.toml"
STOP_FILE = "stop"
"""While it is there the study begins nothing more."""
Value = bool | int | float | str
Params = dict[str, Value]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Choice(_Section):
    """One of some values, without an order."""

    values: Annotated[tuple[Value, ...], Field(min_length=1)]


class Range(_Section):
    """Numbers from `low` to `high`, both included; whole ones where both are whole."""

    low: int | float
    high: int | float
    step: int | float | None = Field(default=None, gt=0)
    """Distance of neighbours, from `low`; unset: 1 between whole numbers, any real number otherwise."""
    log: bool = False
    """Drawn so that every doubling is as likely as every other."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low <= self.high:
            raise ValueError(f"low is {self.low}, above high, which is {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range begins above 0 and has no step")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)


class Budget(_Section):
    """What the study may use in all; it ends when one of them is used up, and at the latest after `attempts`."""

    attempts: int = Field(ge=1)
    """Runs of the command; a promotion's further seeds count too."""
    gpu_seconds: float | None = Field(default=None, gt=0)
    """Device time as the server meters it, so that attempts that share a GPU are charged what they used."""
    tokens: float | None = Field(default=None, gt=0)
    """Tokens trained on, prefilled and sampled, as the server meters them."""


class ProposerConfig(_Section):
    """Where the parameters of the next attempt come from."""

    kind: Literal["grid", "random", "tpe", "gp"] = "tpe"
    """Grid and random search; tree-structured Parzen estimator and Gaussian process, both Optuna's."""
    seed: int = 0
    """Of the proposer's own draws."""
    num_random: int = Field(default=8, ge=1)
    """Attempts drawn at random before a model is fitted."""


class EarlyStop(_Section):
    """Asynchronous successive halving (ASHA): at rungs of steps only the best 1 / `factor` go on."""

    first_rung: int = Field(ge=1)
    """Steps that every attempt may make."""
    factor: int = Field(default=3, ge=2)
    """Each rung has this many times the steps of the one below."""


class AgentConfig(_Section):
    """A coding agent that changes the program, in place of a proposer that chooses parameters."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Run once a turn in a worktree of the program, the prompt on its standard input."""
    researchers: int = Field(default=1, ge=1, le=64)
    """Each has a worktree of its own, and goes on from the best that it has kept."""
    editable: Annotated[tuple[str, ...], Field(min_length=1)]
    """Globs below the study's directory (`**` for any depth); a turn that changes any other file is refused."""
    attempts: int = Field(ge=1)
    """Turns of each researcher, refused ones included."""
    turn_timeout_s: float = Field(default=1800.0, gt=0)
    max_output_bytes: int = Field(default=4_000_000, ge=1)
    """Of what a turn prints, and of the files that it leaves changed."""
    environment: tuple[str, ...] = ()
    """Names of variables that the agent gets beside plain ones such as PATH and HOME."""

    @model_validator(mode="after")
    def _check(self) -> "AgentConfig":
        for each in self.editable:
            if not each or each.startswith(("/", ":")) or ".." in Path(each).parts:
                raise ValueError(f"editable has {each!r}; globs begin at the study's directory and stay below it")
        for each in self.environment:
            if each.startswith(("TINKER_", "OPENRL_")):
                raise ValueError(f"environment has {each}; an agent gets nothing of the server's")
        return self


class Objective(_Section):
    """One of several things to make better."""

    metric: str
    final_metric: str | None = None
    goal: Literal["maximize", "minimize"] = "maximize"

    @property
    def sign(self) -> float:
        """What makes larger better."""
        return 1.0 if self.goal == "maximize" else -1.0


class Study(_Section):
    """A directory with study.toml, beside whatever the command needs."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Run in the study's directory, once an attempt; reads what to do by `openrl.research.Attempt`."""
    metric: str
    """What attempts report and the study looks at: the value on the split named `select`."""
    final_metric: str | None = None
    """The same on a split that no choice was made by; reported for the promoted ones."""
    goal: Literal["maximize", "minimize"] = "maximize"
    objectives: tuple[Objective, ...] = ()
    """In place of `metric`, `final_metric` and `goal`, which are then the first's; the best are a Pareto front."""
    space: dict[str, Choice | Range] = {}
    """Parameters and what they may be; none with an agent, which changes the program."""
    defaults: Params = {}
    """Parameters of the first attempt, to which the best is compared."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    """The first is everybody's; the best `promote` run again with the others."""
    promote: int = Field(default=3, ge=1)
    parallel: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    """Attempts at once; "auto": as many as keep the server's devices busy, by its own signals."""
    max_parallel: int = Field(default=16, ge=1, le=256)
    """The most that "auto" runs at once."""
    attempt_timeout_s: float = Field(default=3600.0, gt=0)
    """An attempt that takes longer has failed."""
    budget: Budget
    proposer: ProposerConfig = ProposerConfig()
    early_stop: EarlyStop | None = None
    agent: AgentConfig | None = None
    kubernetes: KubernetesConfig | None = None
    """Attempts are Jobs of a cluster; unset: processes beside the runner."""
    environment: tuple[str, ...] | None = None
    """Names of variables that attempts get beside plain ones such as PATH and the server's URL and key; unset: all, or
    with an agent no others."""

    @model_validator(mode="before")
    @classmethod
    def _first_objective(cls, given: dict[str, Any]) -> dict[str, Any]:
        objectives = given.get("objectives")
        if not isinstance(objectives, list) or not objectives or not isinstance(objectives[0], dict):
            return given
        both = {"metric", "final_metric", "goal"} & set(given)
        if both:
            raise ValueError(f"objectives stand in place of {', '.join(sorted(both))}")
        return {**given, **cast("dict[str, Any]", objectives[0])}

    @model_validator(mode="after")
    def _check_objectives(self) -> "Study":
        names = [each.metric for each in self.objectives]
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError("objectives are two or more different metrics")
        if names and self.early_stop is not None:
            raise ValueError("[early_stop] compares by one metric; it goes without objectives")
        if names and self.agent is not None:
            raise ValueError("an [agent] is judged by one metric; it goes without objectives")
        return self

    @property
    def goals(self) -> tuple[Objective, ...]:
        """What attempts are compared by, one or several."""
        one = Objective(metric=self.metric, final_metric=self.final_metric, goal=self.goal)
        return self.objectives or (one,)

    @model_validator(mode="after")
    def _check_what_varies(self) -> "Study":
        if self.agent is None and not self.space:
            raise ValueError("there is nothing to vary: neither a [space] of parameters nor an [agent]")
        if self.agent is not None and self.space:
            raise ValueError("an [agent] changes the program; it goes without a [space]")
        return self

    @model_validator(mode="after")
    def _check_kubernetes(self) -> "Study":
        if self.kubernetes is not None and self.agent is not None:
            raise ValueError(
                "an [agent]'s attempts have keys of their own, which Jobs would show: it goes without [kubernetes]"
            )
        if self.kubernetes is not None and self.environment is not None:
            raise ValueError("Jobs get nothing of the runner's environment: kubernetes.variables stands in its place")
        return self

    @model_validator(mode="after")
    def _check_defaults(self) -> "Study":
        for name, value in self.defaults.items():
            if name not in self.space:
                raise ValueError(f"defaults.{name} is not in the space: {', '.join(self.space)}")
            if not is_within(self.space[name], value):
                raise ValueError(f"defaults.{name} is {value!r}, which its space does not have")
        if self.defaults and set(self.defaults) != set(self.space):
            raise ValueError(f"defaults lack {', '.join(sorted(set(self.space) - set(self.defaults)))}")
        return self


def is_within(space: Choice | Range, value: Value) -> bool:
    """Whether the space has this value."""
    if isinstance(space, Choice):
        return any(value == each and type(value) is type(each) for each in space.values)
    return not isinstance(value, bool | str) and space.low <= value <= space.high


def load_study(directory: Path) -> Study:
    """The study of a directory; raises InvalidRequest naming what is wrong with its file."""
    file = directory / STUDY_FILE
    try:
        return Study.model_validate(tomllib.loads(file.read_text()))
    except FileNotFoundError:
        raise InvalidRequest(f"{file} does not exist; `openrl research new {directory}` makes one") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{file} is not TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(f"{file}: {faults}") from error
