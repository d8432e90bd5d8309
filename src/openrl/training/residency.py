"""Decides which runs are in device memory, which on the host, and which on disk.

A run that computes has a slot in the adapter bank and its buffers on the device. The least recently used
runs give theirs up to others: their buffers go to the host and, beyond `host_bytes`, to files.
"""

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError

from openrl.errors import RequestFailed, Unavailable
from openrl.model.lora import AdapterBank
from openrl.training.runs import TrainingRun
from openrl.training.spill import SpillDirectory

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Residence:
    """Where one run is: in a slot, else in a file, else on the host."""

    run: TrainingRun
    slot: int | None = None
    file: Path | None = None
    num_pins: int = 0


class Residency:
    """The open runs of an engine, least recently used first."""

    def __init__(self, bank: AdapterBank, device: torch.device, host_bytes: int, spill: SpillDirectory) -> None:
        self._bank = bank
        self._device = device
        self._host_bytes = host_bytes
        self._spill = spill
        self._residences: OrderedDict[str, Residence] = OrderedDict()
        self._free_slots = list(range(bank.num_slots))[::-1]

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._residences

    def add(self, run: TrainingRun) -> None:
        """Take over a run whose buffers are on the host; replaces a run of the same id, keeping nothing of it."""
        self.remove(run.spec.run_id)
        self._residences[run.spec.run_id] = Residence(run)
        self._keep_host_budget()

    def remove(self, run_id: str) -> None:
        """Forget a run and clean its slot; unknown runs are fine."""
        residence = self._residences.pop(run_id, None)
        if residence is None:
            return
        if residence.file is not None:
            self._spill.delete(residence.file)
        if residence.slot is not None:
            self._bank.clear(residence.slot)
            self._free_slots.append(residence.slot)

    def read(self, run_id: str) -> TrainingRun:
        """The run with its buffers in some memory, wherever it is; raises RequestFailed if it is not open."""
        residence = self._touch(run_id)
        self._unspill(residence)
        return residence.run

    @contextmanager
    def on_device(self, run_ids: Sequence[str]) -> Generator[dict[str, int]]:
        """The runs' slots, theirs until the end of the block; more runs than slots raise Unavailable."""
        pinned: list[Residence] = []
        try:
            for run_id in dict.fromkeys(run_ids):
                residence = self._touch(run_id)
                residence.num_pins += 1
                pinned.append(residence)
                self._place(residence)
            self._keep_host_budget()
            yield {each.run.spec.run_id: each.slot for each in pinned if each.slot is not None}
        finally:
            for residence in pinned:
                residence.num_pins -= 1

    def refresh(self, run_id: str) -> None:
        """Copy a run's changed master weights into its slot."""
        residence = self._residences[run_id]
        assert residence.slot is not None
        self._bank.refill(residence.slot, residence.run.adapter().pairs)

    def _touch(self, run_id: str) -> Residence:
        if run_id not in self._residences:
            raise RequestFailed(f"run {run_id!r} is not open on this worker", "server")
        self._residences.move_to_end(run_id)
        return self._residences[run_id]

    def _place(self, residence: Residence) -> None:
        if residence.slot is not None:
            return
        self._unspill(residence)
        if not self._free_slots:
            self._evict_one()
        run = residence.run
        run.set_buffers({name: buffer.to(self._device) for name, buffer in run.buffers().items()})
        residence.slot = self._free_slots.pop()
        self._bank.write(residence.slot, run.adapter())

    def _evict_one(self) -> None:
        idle = (each for each in self._residences.values() if each.slot is not None and each.num_pins == 0)
        residence = next(idle, None)
        if residence is None or residence.slot is None:
            raise Unavailable(f"all {self._bank.num_slots} adapter slots are in use")
        run = residence.run
        run.set_buffers({name: buffer.to("cpu") for name, buffer in run.buffers().items()})
        self._bank.clear(residence.slot)
        self._free_slots.append(residence.slot)
        residence.slot = None

    def _keep_host_budget(self) -> None:
        """Write idle runs to disk, least recently used first, until the others fit the host budget."""
        on_host = [each for each in self._residences.values() if each.slot is None and each.file is None]
        excess = sum(each.run.num_bytes for each in on_host) - self._host_bytes
        for residence in on_host:
            if excess <= 0:
                return
            num_bytes = residence.run.num_bytes
            if not self._to_disk(residence):
                return
            excess -= num_bytes

    def _to_disk(self, residence: Residence) -> bool:
        try:
            residence.file = self._spill.write(residence.run.buffers())
        except (OSError, SafetensorError) as error:
            # The run stays where it is: too much memory in use is better than a lost run.
            log.warning("spill_failed", run_id=residence.run.spec.run_id, error=str(error))
            return False
        residence.run.drop_buffers()
        return True

    def _unspill(self, residence: Residence) -> None:
        if residence.file is None:
            return
        residence.run.set_buffers(self._spill.read(residence.file))
        self._spill.delete(residence.file)
        residence.file = None
