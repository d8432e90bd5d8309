"""Proves to both ends of a stream that the other holds the shared secret, without sending it.

The scheduler sends a nonce; the worker answers with its own nonce and the HMAC of both; the
scheduler answers with an HMAC of both under another label, so that neither answer can be replayed
to the other side or on another connection.
"""

import asyncio
import hashlib
import hmac
import secrets

from openrl.errors import Unauthorized

HANDSHAKE_TIMEOUT_S = 10.0
_NONCE_BYTES = 32
_PROOF_BYTES = hashlib.sha256().digest_size


async def prove_to_worker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> None:
    """The scheduler's side; raises Unauthorized on a wrong answer, EOFError or OSError on a broken stream."""
    ours = secrets.token_bytes(_NONCE_BYTES)
    writer.write(ours)
    theirs = await reader.readexactly(_NONCE_BYTES)
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, b"worker", ours, theirs)):
        raise Unauthorized("the worker does not hold the secret")
    writer.write(_proof(secret, b"scheduler", ours, theirs))


async def prove_to_scheduler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> None:
    """The worker's side; raises as `prove_to_worker`. A refusal shows as EOFError: the stream ends."""
    theirs = await reader.readexactly(_NONCE_BYTES)
    ours = secrets.token_bytes(_NONCE_BYTES)
    writer.write(ours + _proof(secret, b"worker", theirs, ours))
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, b"scheduler", theirs, ours)):
        raise Unauthorized("the scheduler does not hold the secret")


def _proof(secret: bytes, label: bytes, scheduler_nonce: bytes, worker_nonce: bytes) -> bytes:
    return hmac.new(secret, label + scheduler_nonce + worker_nonce, hashlib.sha256).digest()
