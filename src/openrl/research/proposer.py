"""Which parameters to try next, and which attempts to stop early; both are Optuna's."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from openrl.errors import InvalidRequest
from openrl.research.journal import ENDED, AttemptRecord
from openrl.research.study import Choice, EarlyStop, Params, ProposerConfig, Range, Study

_MAX_REPEATS = 100  # proposals in a row that were tried before: the space is then taken as exhausted
MAX_GRID = 100_000


class Proposer:
    """The attempts of the first seed, as a study of Optuna's in memory that the journal is replayed into.

    So the journal alone is what has to survive; a crash forgets nothing but the draws of proposals that were not begun.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._distributions = {name: _distribution(space) for name, space in study.space.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna.create_study(
            sampler=_sampler(study.proposer),
            pruner=_pruner(study.early_stop),
            directions=[each.goal for each in study.goals],
        )
        self._trials: dict[int, Trial] = {}  # of attempts that run
        self._seen: set[str] = set()
        self._grid = iter(grid(study.space)) if study.proposer.kind == "grid" else None

    def propose(self) -> Params | None:
        """Parameters that were not tried before; None where there are none left."""
        if not self._seen and self._study.defaults:
            return dict(self._study.defaults)
        if self._grid is not None:
            return next((params for params in self._grid if _key(params) not in self._seen), None)
        for _ in range(_MAX_REPEATS):
            trial = self._optuna.ask(self._distributions)
            params: Params = {name: trial.params[name] for name in self._study.space}
            self._optuna.tell(trial, state=TrialState.FAIL)  # asked for again under its number when it begins
            if _key(params) not in self._seen:
                return params
        return None

    def begin(self, attempt: AttemptRecord) -> None:
        """It runs now; reports that it has made before are given again."""
        self._seen.add(_key(attempt.params))
        self._optuna.enqueue_trial(dict(attempt.params))
        self._trials[attempt.number] = self._optuna.ask(self._distributions)
        for step, values in attempt.reports:
            self.report(attempt.number, step, values)

    def report(self, number: int, step: int, values: Mapping[str, float]) -> bool:
        """Whether the attempt should stop: it is not among the best of its rung."""
        trial = self._trials.get(number)
        if trial is None or self._study.objectives or self._study.metric not in values:
            return False
        trial.report(values[self._study.metric], step)
        return self._study.early_stop is not None and trial.should_prune()

    def end(self, attempt: AttemptRecord) -> None:
        """It is over; a failed one says nothing about its parameters but that they were tried."""
        trial = self._trials.pop(attempt.number)
        found = [attempt.value(each.metric) for each in self._study.goals]
        values = [value for value in found if value is not None]
        if attempt.state == "done" and len(values) == len(found):
            self._optuna.tell(trial, values)
        else:
            self._optuna.tell(trial, state=TrialState.PRUNED if attempt.state == "stopped" else TrialState.FAIL)

    def restore(self, attempts: Mapping[int, AttemptRecord]) -> None:
        """Take over what the journal has, in its order."""
        for _, attempt in sorted(attempts.items()):
            if not attempt.is_promotion and attempt.has_run and attempt.state != "proposing":
                self.begin(attempt)
                if attempt.state in ENDED:
                    self.end(attempt)

    def importances(self, objective: int = 0) -> dict[str, float]:
        """How much each parameter has to do with good values of a metric (PED-ANOVA); empty for too few attempts."""
        done = [trial for trial in self._optuna.trials if trial.state == TrialState.COMPLETE]
        if not self._study.space or len(done) < 4 or len({trial.values[objective] for trial in done}) < 2:
            return {}

        alone = optuna.create_study(direction=self._study.goals[objective].goal)  # the evaluator knows one objective
        for trial in done:
            value, ranges = trial.values[objective], trial.distributions
            alone.add_trial(optuna.create_trial(value=value, params=trial.params, distributions=ranges))
        return dict(optuna.importance.get_param_importances(alone))


def grid(space: Mapping[str, Choice | Range]) -> list[Params]:
    """All combinations; raises InvalidRequest where a range has no step or there are too many."""
    axes = [_axis(name, each) for name, each in space.items()]
    size = 1
    for axis in axes:
        size *= len(axis)
    if size > MAX_GRID:
        raise InvalidRequest(f"the grid has {size} points; at most {MAX_GRID} can be enumerated")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def _axis(name: str, space: Choice | Range) -> list[Any]:
    if isinstance(space, Choice):
        return list(space.values)
    step = space.step or (1 if space.is_whole else None)
    if step is None or space.log:
        raise InvalidRequest(f"space.{name} is continuous; a grid needs `values` or a `step`")
    count = int((space.high - space.low) / step + 1e-9) + 1
    return [space.low + i * step for i in range(count)]


def _distribution(space: Choice | Range) -> BaseDistribution:
    if isinstance(space, Choice):
        return CategoricalDistribution(space.values)
    if space.is_whole:
        return IntDistribution(int(space.low), int(space.high), log=space.log, step=int(space.step or 1))
    return FloatDistribution(float(space.low), float(space.high), log=space.log, step=space.step)


def _sampler(config: ProposerConfig) -> BaseSampler:
    makers: dict[str, Callable[[], BaseSampler]] = {
        "grid": lambda: RandomSampler(config.seed),
        "random": lambda: RandomSampler(config.seed),
        "tpe": lambda: TPESampler(n_startup_trials=config.num_random, seed=config.seed, constant_liar=True),
        "gp": lambda: GPSampler(n_startup_trials=config.num_random, seed=config.seed),
    }
    return makers[config.kind]()


def _pruner(config: EarlyStop | None) -> BasePruner:
    if config is None:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=config.first_rung, reduction_factor=config.factor)


def _key(params: Params) -> str:
    return repr(sorted(params.items()))
