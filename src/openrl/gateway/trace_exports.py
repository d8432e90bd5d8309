"""Builds session traces in the background; each is kept as an object until the session has done more."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from openrl.errors import NotFound
from openrl.gateway.session_trace import build_trace
from openrl.store.base import Blobs, TenantStore
from openrl.store.ledger import TracedRequest
from openrl.store.object_keys import trace_key

TRACE_FILE = "trace.pftrace"
MAX_REQUESTS = 100_000
"""A longer session's trace holds its newest requests: the file stays one that viewers open."""
_VERSION_FILE = "version"


@dataclass(slots=True)
class TraceExports:
    """What one gateway is building; another one may build the same, and the last to finish is kept."""

    store: TenantStore
    blobs: Blobs
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])

    async def is_ready(self, tenant_id: str, session_id: str, wait_s: float) -> bool:
        """Whether the trace is there and up to date; builds it if not, and waits for that at most `wait_s`.

        Raises OpenRLError when building it failed; asking again tries again.
        """
        task = self.tasks.get(session_id)
        if task is None:
            num_requests, num_ended = await self.store.ledger.trace_version(tenant_id, session_id)
            version = f"{num_requests} {num_ended}"
            if await asyncio.to_thread(self._stored_version, session_id) == version:
                return True
            task = asyncio.create_task(self._build(tenant_id, session_id, version))
            self.tasks[session_id] = task
        await asyncio.wait([task], timeout=wait_s)
        if not task.done():
            return False
        if self.tasks.get(session_id) is task:
            del self.tasks[session_id]
        task.result()
        return True

    async def _build(self, tenant_id: str, session_id: str, version: str) -> None:
        requests = await self.store.ledger.trace(tenant_id, session_id, MAX_REQUESTS)
        await asyncio.to_thread(self._write, session_id, requests, version)

    def _write(self, session_id: str, requests: tuple[TracedRequest, ...], version: str) -> None:
        trace = build_trace(session_id, requests)
        self.blobs.put_object(trace_key(session_id), {TRACE_FILE: trace, _VERSION_FILE: version.encode()})

    def _stored_version(self, session_id: str) -> str:
        try:
            return Path(self.blobs.open_path(trace_key(session_id), _VERSION_FILE)).read_text()
        except NotFound:
            return ""
