"""Rows with the fields that a test does not care about filled in."""

from typing import Any

from openrl.protocol.runs import RunSpec
from openrl.store.base import CheckpointRow, FinishedRequest, RequestRow, RunRow, SamplerRow, SessionRow

ALICE, BOB = "alice", "bob"


def session(session_id: str, tenant_id: str = ALICE, **fields: Any) -> SessionRow:
    defaults: dict[str, Any] = {"created_at": 1.0, "last_heartbeat_at": 1.0}
    return SessionRow(session_id, tenant_id, **{**defaults, **fields})


def run(run_id: str, tenant_id: str = ALICE, **fields: Any) -> RunRow:
    spec = RunSpec(run_id, tenant_id, "tiny", 8, 2**64 - 1, True, False, True)
    defaults: dict[str, Any] = {
        "session_id": f"{run_id}-session",
        "model_seq_id": 0,
        "created_at": 1.0,
        "last_request_at": 1.0,
    }
    defaults["optimizer_config"] = {"type": "adamw"}
    return RunRow(spec, **{**defaults, **fields})


def request(run_id: str, seq_id: int, tenant_id: str = ALICE, **fields: Any) -> RequestRow:
    defaults: dict[str, Any] = {
        "request_id": f"{tenant_id}-{run_id}-{seq_id}",
        "session_id": f"{run_id}-session",
        "kind": "forward_backward" if seq_id else "create_model",
        "dedupe_key": f"run:{run_id}:{seq_id}",
        "created_at": 2.0 + seq_id,
        "num_tokens": 7,
    }
    return RequestRow(tenant_id=tenant_id, run_id=run_id, seq_id=seq_id, **{**defaults, **fields})


def sample(sampler_id: str, seq_id: int, tenant_id: str = ALICE, **fields: Any) -> RequestRow:
    defaults: dict[str, Any] = {
        "kind": "sample",
        "sampler_id": sampler_id,
        "dedupe_key": f"sampler:{sampler_id}:{seq_id}",
    }
    return request("", seq_id, tenant_id, **{**defaults, "request_id": f"{sampler_id}-{seq_id}", **fields})


def done(request_id: str, **fields: Any) -> FinishedRequest:
    defaults: dict[str, Any] = {"state": "done", "finished_at": 10.0, "result_ref": "r:0:0"}
    return FinishedRequest(request_id, **{**defaults, **fields})


def sampler(sampler_id: str, tenant_id: str = ALICE, **fields: Any) -> SamplerRow:
    defaults: dict[str, Any] = {
        "session_id": "s1",
        "base_model": "tiny",
        "created_at": 1.0,
        "sampling_session_seq_id": 10**18,
    }
    return SamplerRow(sampler_id, tenant_id, **{**defaults, **fields})


def checkpoint(name: str, tenant_id: str = ALICE, **fields: Any) -> CheckpointRow:
    defaults: dict[str, Any] = {
        "run_id": "r1",
        "kind": "weights",
        "key": f"checkpoints/{name}",
        "size_bytes": 5,
        "created_at": 1.0,
    }
    return CheckpointRow(name=name, tenant_id=tenant_id, **{**defaults, **fields})
