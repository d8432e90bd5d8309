"""Decides which side gets the device next: training or sampling."""

from typing import Literal

Side = Literal["training", "sampling"]


class TimeShare:
    """Equal device time for both sides while both have work; everything for one that is alone.

    The side that has used less time since both became busy goes next, so that after a long
    training micro-batch sampling takes as many decode steps as fit into the same time. A side that
    was idle earns no more credit than the one step it had to wait for.
    """

    def __init__(self) -> None:
        self._lead_s = 0.0  # device seconds by which training is ahead of sampling

    def choose(self, has_training: bool, has_sampling: bool) -> Side | None:
        """Who goes next; None where nobody has work."""
        if has_training and has_sampling:
            return "sampling" if self._lead_s >= 0 else "training"
        self._lead_s = 0.0
        if has_training:
            return "training"
        return "sampling" if has_sampling else None

    def record(self, side: Side, seconds: float) -> None:
        """Charge the device time of one step."""
        self._lead_s += seconds if side == "training" else -seconds
