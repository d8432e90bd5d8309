"""A worker's work shows in the load that every tenant is told."""

import asyncio

import tinker
from tinker import types

from openrl.research.server_load import ServerLoad
from tests.live_server import MODEL_NAME, LiveServer

TOKENS = list(range(3, 67))
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints(TOKENS),
    loss_fn_inputs={"target_tokens": TOKENS, "weights": [1.0] * len(TOKENS)},  # pyright: ignore[reportArgumentType]
)


async def test_training_shows_as_duty_to_both_tenants(server: LiveServer):
    ours, theirs = (ServerLoad(server.url, key) for key in (server.key, server.other_key))
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as client:
        trainer = await client.create_lora_training_client(MODEL_NAME, rank=4)
        async with asyncio.timeout(120):
            while not ((await ours.load()).device_duty and (await theirs.load()).device_duty):
                training = [trainer.forward_backward([DATUM] * 8, "cross_entropy") for _ in range(4)]
                for each in training:
                    await each
    for each in (await ours.load(), await theirs.load()):
        assert each.device_duty is not None
        assert 0 <= each.device_duty <= 1
        assert each.queue_wait_s >= 0
