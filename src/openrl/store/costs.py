"""Adds up what was used and what it costs at the configured rates."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from openrl.config import RatesConfig
from openrl.store.ledger import Spending, UsageKind


@dataclass(slots=True)
class Bill:
    """What one thing used."""

    busy_us: int = 0
    training_tokens: int = 0
    sampling_tokens: int = 0  # prompts, cached or not, and what was sampled
    cost_usd: float | None = None  # None: nothing in it has a rate

    @property
    def gpu_seconds(self) -> float:
        """Device time."""
        return self.busy_us / 1e6

    def add(self, spent: Spending, rates: RatesConfig) -> None:
        """Count one more."""
        self.busy_us += spent.busy_us
        if spent.kind == "training":
            self.training_tokens += spent.amount
        elif spent.kind != "checkpoint":
            self.sampling_tokens += spent.amount
        cost = cost_of(rates, spent.kind, spent.amount, spent.busy_us)
        if cost is not None:
            self.cost_usd = (self.cost_usd or 0.0) + cost


def cost_of(rates: RatesConfig, kind: UsageKind, amount: int, busy_us: int) -> float | None:
    """US dollars of an amount and its device time; None where neither has a rate."""
    rate = None if kind == "checkpoint" else getattr(rates, kind)
    if rate is None and rates.gpu_second is None:
        return None
    return (rate or 0.0) * amount / 1e6 + (rates.gpu_second or 0.0) * busy_us / 1e6


def add_up(spent: Iterable[Spending], rates: RatesConfig, key: Callable[[Spending], str]) -> dict[str, Bill]:
    """One bill for each key."""
    bills: dict[str, Bill] = {}
    for each in spent:
        bills.setdefault(key(each), Bill()).add(each, rates)
    return bills


def show_cost(cost_usd: float | None) -> str:
    """As tables have it."""
    return "" if cost_usd is None else f"{cost_usd:.4f}"
