"""Bounds the bytes of request bodies that a process holds at once; what does not fit waits for its turn."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from openrl.errors import Unavailable

WAIT_S = 20.0
"""Well below the time after which clients give up."""


@dataclass(slots=True)
class BodyLease:
    """The part of the budget that one request holds."""

    tenant_id: str = ""
    num_bytes: int = 0


@dataclass(eq=False, slots=True)
class _Waiting:
    lease: BodyLease
    num_bytes: int
    turn: "asyncio.Future[None]"


@dataclass(slots=True)
class BodyBudget:
    """`capacity` bytes for all; a tenant may have half, so that its flood leaves the others theirs.

    A request that holds all of what its tenant has may always go on: the largest body is taken, if only alone.
    """

    capacity: int
    wait_s: float = WAIT_S
    _num_held: int = 0
    _held: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))  # by tenant; no zeros
    _waiting: list[_Waiting] = field(default_factory=list[_Waiting])

    @property
    def num_held(self) -> int:
        """Bytes that all requests hold together."""
        return self._num_held

    async def hold(self, lease: BodyLease, num_bytes: int) -> None:
        """Have the lease hold so much in all; raises Unavailable when that was not free for `wait_s`."""
        missing = num_bytes - lease.num_bytes
        if missing <= 0:
            return
        if self._fits(lease, missing):
            self._grant(lease, missing)
            return
        waiting = _Waiting(lease, missing, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self.wait_s):
                await waiting.turn
        except TimeoutError:
            message = f"the server takes in as much as it can; a body of {num_bytes} bytes waited {self.wait_s:g} s"
            raise Unavailable(f"{message}: send it again") from None
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def release(self, lease: BodyLease) -> None:
        """Give back all that the lease holds, and let others have their turn, in the order in which they came."""
        self._num_held -= lease.num_bytes
        self._held[lease.tenant_id] -= lease.num_bytes
        if not self._held[lease.tenant_id]:
            del self._held[lease.tenant_id]
        lease.num_bytes = 0
        for waiting in list(self._waiting):
            if not waiting.turn.done() and self._fits(waiting.lease, waiting.num_bytes):
                self._waiting.remove(waiting)
                self._grant(waiting.lease, waiting.num_bytes)
                waiting.turn.set_result(None)

    def _fits(self, lease: BodyLease, num_bytes: int) -> bool:
        num_others = self._num_held - lease.num_bytes
        num_tenants = self._held.get(lease.tenant_id, 0)
        is_tenants_only = num_tenants == lease.num_bytes
        return (num_others == 0 or self._num_held + num_bytes <= self.capacity) and (
            is_tenants_only or num_tenants + num_bytes <= self.capacity // 2
        )

    def _grant(self, lease: BodyLease, num_bytes: int) -> None:
        lease.num_bytes += num_bytes
        self._num_held += num_bytes
        self._held[lease.tenant_id] += num_bytes
