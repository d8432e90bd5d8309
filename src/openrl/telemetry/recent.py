"""Counters with a bounded number of owners: those that counted last."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class RecentCounter(Collector):
    """A counter whose first labels name an owner (a tenant, a run).

    Ids as labels make as many series as there are ids. Here at most `max_owners` have series; whoever counts beyond
    that takes the place of the owner that has not counted for longest, and counts from zero when it comes back, as
    after a restart of the process.
    """

    def __init__(self, name: str, text: str, owner_labels: Sequence[str], label: str, max_owners: int) -> None:
        """`label` tells the series of one owner apart."""
        self._name = name
        self._text = text
        self._labels = (*owner_labels, label)
        self._max_owners = max_owners
        self._counts: OrderedDict[tuple[str, ...], dict[str, float]] = OrderedDict()

    def add(self, owner: tuple[str, ...], value: str, amount: float) -> None:
        """Count for an owner."""
        if not self._max_owners or not amount:
            return
        counts = self._counts.get(owner)
        if counts is None:
            counts = self._counts[owner] = {}
            if len(self._counts) > self._max_owners:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(owner)
        counts[value] = counts.get(value, 0.0) + amount

    def remove(self, owner: tuple[str, ...]) -> None:
        """Show an owner no more."""
        self._counts.pop(owner, None)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What a scrape shows."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for owner, counts in self._counts.items():
            for value, amount in counts.items():
                family.add_metric((*owner, value), amount)
        yield family
