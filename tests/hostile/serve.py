"""The gateway over SQLite in a process of its own, with a scheduler that finishes at once.

    python -m tests.hostile.serve DIR

Reads a JSON object of gateway settings from standard input, prints the URL, and serves until standard input ends.
"""

import asyncio
import sys
from pathlib import Path

from openrl.catalog import Catalog
from openrl.cli.http_server import bind, create_http_server, url_of
from openrl.config import GatewayConfig
from openrl.gateway.app import create_app
from openrl.gateway.auth import hash_key
from openrl.store.blobs import DirectoryBlobs
from openrl.store.identities import OPERATOR, ApiKeyRow, TenantRow
from openrl.store.sql import create_store
from openrl.telemetry.http import MeteredApp
from openrl.telemetry.logs import configure_logs
from openrl.telemetry.metrics import create_metrics
from tests.gateway.fake_scheduler import FakeScheduler
from tests.gateway.gateway_server import KEYS, MODEL

SIGNING_KEY = b"a secret that signs links"


async def serve(root: Path, config: GatewayConfig) -> None:
    blobs = DirectoryBlobs(root / "blobs")
    store = await create_store(f"sqlite:///{root}/openrl.db", blobs)
    for tenant_id, key in KEYS.items():
        await store.identities.create_tenant(TenantRow(tenant_id, tenant_id, 0.0), OPERATOR)
        await store.identities.add_api_key(ApiKeyRow(hash_key(key), tenant_id, "test", 0.0), OPERATOR)
    app = create_app(store, blobs, Catalog((MODEL,)), config, signing_key=SIGNING_KEY)
    http = create_http_server(MeteredApp(app, create_metrics(), log_answers=True), config)
    scheduling = asyncio.create_task(FakeScheduler(store, blobs).run())
    with bind("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        print(url_of(listener), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        http.should_exit = True
        await serving
    scheduling.cancel()
    await store.close()
    blobs.close()


if __name__ == "__main__":
    configure_logs("server", "debug")
    asyncio.run(serve(Path(sys.argv[1]), GatewayConfig.model_validate_json(sys.stdin.readline())))
