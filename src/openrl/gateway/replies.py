"""JSON replies, and rows as the API shows them (tinker-api §4.8)."""

import json
from datetime import UTC, datetime

from starlette.responses import Response

from openrl.protocol.metadata import show_metadata
from openrl.protocol.paths import CheckpointPath
from openrl.protocol.runs import CheckpointKind
from openrl.store.base import CheckpointRow, Json, Page, RequestRow, RunRow

JSON_TYPE = "application/json"
PROTOBUF_TYPE = "application/x-protobuf"
_JSON = json.JSONEncoder(allow_nan=False)
_CHECKPOINT_TYPES: dict[CheckpointKind, str] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def json_reply(content: Json, status: int = 200) -> Response:
    """Plain JSON; characters that UTF-8 cannot carry travel as escapes."""
    return Response(_JSON.encode(content).encode(), status, media_type=JSON_TYPE)


def no_content() -> Response:
    """Done, and nothing to say."""
    return Response(status_code=204)


def future_reply(row: RequestRow) -> Response:
    """Where to ask for the result of a queued request."""
    content: Json = {"request_id": row.request_id}
    if row.run_id:
        content["model_id"] = row.run_id
    return json_reply(content)


def show_time(seconds: float) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def show_cursor(page: Page[RunRow] | Page[CheckpointRow], limit: int, offset: int) -> Json:
    """Where a listing stands."""
    return {"offset": offset, "limit": limit, "total_count": page.total_count}


def show_checkpoint(row: CheckpointRow) -> Json:
    """A Checkpoint."""
    path = CheckpointPath(row.run_id, row.kind, row.name)
    return {
        "checkpoint_id": path.checkpoint_id,
        "checkpoint_type": _CHECKPOINT_TYPES[row.kind],
        "time": show_time(row.created_at),
        "tinker_path": str(path),
        "size_bytes": row.size_bytes,
        "public": row.is_public,
        "user_metadata": show_metadata(row.user_metadata),
        "expires_at": None if row.expires_at is None else show_time(row.expires_at),
    }


def show_run(row: RunRow, checkpoints: Page[CheckpointRow]) -> Json:
    """A TrainingRun; `checkpoints` are its own, newest first."""
    latest: dict[str, CheckpointRow] = {}
    for checkpoint in checkpoints.items:
        latest.setdefault(checkpoint.kind, checkpoint)
    return {
        "training_run_id": row.spec.run_id,
        "base_model": row.spec.base_model,
        "model_owner": row.spec.tenant_id,
        "is_lora": True,
        "corrupted": False,
        "lora_rank": row.spec.rank,
        "last_request_time": show_time(row.last_request_at),
        "last_checkpoint": show_checkpoint(latest["weights"]) if "weights" in latest else None,
        "last_sampler_checkpoint": show_checkpoint(latest["sampler_weights"]) if "sampler_weights" in latest else None,
        "user_metadata": show_metadata(row.user_metadata),
    }
