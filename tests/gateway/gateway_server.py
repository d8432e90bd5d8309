"""The real gateway under a real HTTP server on a loopback port, in a thread of its own."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from openrl.catalog import BaseModelInfo, Catalog
from openrl.config import GatewayConfig
from openrl.gateway.app import create_app
from openrl.gateway.auth import hash_key
from openrl.store.base import ApiKeyRow, TenantRow
from openrl.store.blobs import DirectoryBlobs
from openrl.store.memory import MemoryStore
from tests.gateway.fake_scheduler import FakeScheduler

MODEL = BaseModelInfo("tiny/llama", Path("unused"), "LlamaForCausalLM", vocab_size=512, context_length=128)
KEYS = {"alice": "tml-alice", "bob": "tml-bob"}
T = TypeVar("T")


class GatewayServer:
    """Two tenants, one base model, a scheduler that finishes at once."""

    def __init__(self, root: Path, config: GatewayConfig, clock: Callable[[], float] = time.time) -> None:
        self.blobs = DirectoryBlobs(root)
        self.store = MemoryStore(self.blobs, clock)
        self.cancelled: list[str] = []
        self.ended: list[str] = []
        self.is_ready = True
        self.app_config = config
        self.app = create_app(
            self.store,
            self.blobs,
            Catalog((MODEL,)),
            config,
            clock,
            on_cancel=self.cancelled.append,
            on_session_end=self.ended.append,
            is_ready=lambda: self.is_ready,
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

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.scheduler = FakeScheduler(self.store, self.blobs)
        for tenant_id, key in KEYS.items():
            await self.store.create_tenant(TenantRow(tenant_id, tenant_id, 0.0))
            await self.store.add_api_key(ApiKeyRow(hash_key(key), tenant_id, "test", 0.0))
        config = uvicorn.Config(self.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._uvicorn = uvicorn.Server(config)
        task = asyncio.create_task(self.scheduler.run())
        self._is_up.set()
        await self._uvicorn.serve(sockets=[self._socket])
        task.cancel()
