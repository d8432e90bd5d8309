"""The real gateway under a real HTTP server on a loopback port, in a thread of its own."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from openrl.catalog import BaseModelInfo, Catalog
from openrl.cli.http_server import create_http_server
from openrl.config import AuthConfig, GatewayConfig
from openrl.gateway.app import create_app
from openrl.gateway.auth import hash_key
from openrl.store.base import ApiKeyRow, TenantRow
from openrl.store.blobs import DirectoryBlobs
from openrl.store.cluster import SchedulerStatus, Signal
from openrl.store.identities import OPERATOR
from openrl.store.memory import MemoryStore
from tests.gateway.fake_scheduler import FakeScheduler

MODEL = BaseModelInfo("tiny/llama", Path("unused"), "LlamaForCausalLM", vocab_size=512, context_length=128)
KEYS = {"alice": "tml-alice", "bob": "tml-bob"}
T = TypeVar("T")


class Clock:
    """The server's time: the client's, and then some."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class GatewayServer:
    """Two tenants, one base model, a scheduler that finishes at once."""

    def __init__(
        self,
        root: Path,
        config: GatewayConfig,
        clock: Callable[[], float] = time.time,
        auth: AuthConfig | None = None,
        window_s: float = 10.0,
        *,
        samples_with_vllm: bool = False,
    ) -> None:
        self._window_s = window_s
        self.blobs = DirectoryBlobs(root)
        self.store = MemoryStore(self.blobs, clock)
        self.signals: list[Signal] = []
        self.is_ready = True
        self.app_config = config
        self.app = create_app(
            self.store,
            self.blobs,
            Catalog((MODEL,)),
            config,
            clock,
            auth=auth,
            is_ready=lambda: self.is_ready,
            steady=time.monotonic if clock is time.time else clock,
            samples_with_vllm=samples_with_vllm,
        )
        # The protocol is named so that asyncio sets TCP_NODELAY; without it each answer takes 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(512)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._is_up.wait(10)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._socket.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine run in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def told(self, kind: str) -> list[str]:
        """Subjects of the signals of this kind."""
        self.call(asyncio.sleep(0))
        return [signal.subject for signal in self.signals if signal.kind == kind]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.scheduler = FakeScheduler(self.store, self.blobs)
        await self.store.cluster.publish_status(SchedulerStatus((MODEL.name,), {}, 1))
        for tenant_id, key in KEYS.items():
            await self.store.identities.create_tenant(TenantRow(tenant_id, tenant_id, 0.0), OPERATOR)
            await self.store.identities.add_api_key(ApiKeyRow(hash_key(key), tenant_id, "test", 0.0), OPERATOR)
        self._uvicorn = create_http_server(self.app, self.app_config, self._window_s)
        self._uvicorn.config.timeout_graceful_shutdown = 1
        tasks = [asyncio.create_task(self.scheduler.run()), asyncio.create_task(self._note_signals())]
        self._is_up.set()
        await self._uvicorn.serve(sockets=[self._socket])
        for task in tasks:
            task.cancel()

    async def _note_signals(self) -> None:
        async for signal in self.store.cluster.signals():
            self.signals.append(signal)
