"""Turns what the scheduler decided into the rows that the store commits."""

from openrl.rpc.messages import SavedCheckpoint
from openrl.scheduler.actions import Finish
from openrl.store.base import CheckpointRow, FinishedRequest, RequestRow, SamplerRow


def finished_request(finish: Finish, now: float) -> FinishedRequest:
    """How a request ended and the checkpoint or sampler that came into being with it."""
    outcome = finish.outcome
    saved = outcome.checkpoint
    return FinishedRequest(
        request_id=finish.request.request_id,
        state=finish.state,
        finished_at=now,
        result_ref=outcome.result_ref,
        error=outcome.error,
        category=outcome.category,
        checkpoint=checkpoint_row(saved, finish.request, now) if saved is not None and saved.name else None,
        may_replace=saved is None or saved.may_replace,
        max_stored=finish.max_stored,
        sampler=sampler_row(saved, finish, now) if saved is not None and saved.sampler_id else None,
        num_tokens=outcome.num_tokens,
        num_sampled_tokens=outcome.num_sampled_tokens,
        num_cached_tokens=outcome.num_cached_tokens,
        busy_s=outcome.busy_s,
        wall_s=outcome.wall_s,
    )


def checkpoint_row(saved: SavedCheckpoint, request: RequestRow, now: float) -> CheckpointRow:
    """The row of a named save; it belongs to the tenant of the request."""
    return CheckpointRow(
        run_id=saved.run_id,
        kind=saved.kind,
        name=saved.name,
        tenant_id=request.tenant_id,
        key=saved.key,
        size_bytes=saved.size_bytes,
        created_at=now,
        expires_at=saved.expires_at,
        user_metadata=dict(saved.user_metadata) if saved.user_metadata is not None else None,
    )


def sampler_row(saved: SavedCheckpoint, finish: Finish, now: float) -> SamplerRow:
    """The sampling session of an unnamed save; its files go when its session goes."""
    return SamplerRow(
        sampler_id=saved.sampler_id,
        tenant_id=finish.request.tenant_id,
        session_id=finish.request.session_id,
        base_model=finish.base_model,
        created_at=now,
        sampling_session_seq_id=saved.sampling_session_seq_id,
        adapter_key=saved.key,
        is_ephemeral=True,
        size_bytes=saved.size_bytes,
    )
