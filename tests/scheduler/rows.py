"""Rows of runs and requests, with what does not matter filled in."""

from openrl.protocol.runs import RequestKind, RunSpec
from openrl.store.base import RequestRow, RunRow

MODEL = "tiny"


def run_row(run_id: str, tenant_id: str = "t0", session_id: str = "s0", base_model: str = MODEL) -> RunRow:
    spec = RunSpec(run_id, tenant_id, base_model, 8, 0, True, True, False)
    return RunRow(spec, session_id, 0, 0.0, 0.0, {})


def training_row(
    run: RunRow, seq_id: int, kind: RequestKind, num_tokens: int = 100, position: int = 0, request_id: str = ""
) -> RequestRow:
    run_id = run.spec.run_id
    return RequestRow(
        request_id or f"{run_id}/{seq_id}",
        run.spec.tenant_id,
        run.session_id,
        kind,
        f"run:{run_id}:{seq_id}",
        seq_id,
        0.0,
        run_id=run_id,
        base_model=run.spec.base_model,
        num_tokens=num_tokens,
        position=position,
    )


def sample_row(name: str, tenant_id: str = "t0", num_sequences: int = 1, position: int = 0) -> RequestRow:
    return RequestRow(
        name,
        tenant_id,
        "s0",
        "sample",
        f"sampler:x:{name}",
        0,
        0.0,
        sampler_id=f"sampler-{tenant_id}",
        base_model=MODEL,
        num_tokens=100 * num_sequences,
        num_sequences=num_sequences,
        position=position,
    )
