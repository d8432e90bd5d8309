"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("tenants", "api_keys", "sessions", "runs", "samplers", "requests", "checkpoints")


def upgrade() -> None:
    """Apply this step."""
    _create_tenants()
    _create_api_keys()
    _create_sessions()
    _create_runs()
    _create_samplers()
    _create_requests()
    _create_checkpoints()


def downgrade() -> None:
    """Undo this step."""
    for table in TABLES:
        op.drop_table(table)


def _only(condition: sa.TextClause) -> dict[str, Any]:
    return {"sqlite_where": condition, "postgresql_where": condition}


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id"),
    )


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("key_hash", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("key_hash"),
    )


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_heartbeat_at", sa.Double(), nullable=False),
        sa.Column("sdk_version", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("user_metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("display_name", sa.String(), nullable=True),
        sa.Column("project_id", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("end_reason", sa.String(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("session_id"),
        sa.UniqueConstraint("tenant_id", "idempotency_key", name="uq_sessions_idempotency"),
    )
    op.create_index("ix_sessions_listing", "sessions", ["tenant_id", "created_at"])
    op.create_index("ix_sessions_silent", "sessions", ["state", "last_heartbeat_at"])


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("seed", sa.String(), nullable=False),
        sa.Column("train_attn", sa.Boolean(), nullable=False),
        sa.Column("train_mlp", sa.Boolean(), nullable=False),
        sa.Column("train_unembed", sa.Boolean(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("model_seq_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_request_at", sa.Double(), nullable=False),
        sa.Column("optimizer_config", sa.JSON(), nullable=False),
        sa.Column("user_metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("snapshot_key", sa.String(), nullable=True),
        sa.Column("snapshot_seq_id", sa.BigInteger(), nullable=False),
        sa.Column("is_closed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
        sa.UniqueConstraint("tenant_id", "session_id", "model_seq_id", name="uq_runs_retry"),
    )
    op.create_index("ix_runs_listing", "runs", ["tenant_id", "created_at"])
    op.create_index("ix_runs_live", "runs", ["created_at"], **_only(sa.text("NOT is_closed")))


def _create_samplers() -> None:
    op.create_table(
        "samplers",
        sa.Column("sampler_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sampling_session_seq_id", sa.BigInteger(), nullable=False),
        sa.Column("model_path", sa.String(), nullable=True),
        sa.Column("adapter_key", sa.String(), nullable=True),
        sa.Column("is_ephemeral", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("sampler_id"),
        sa.UniqueConstraint("tenant_id", "session_id", "sampling_session_seq_id", name="uq_samplers_retry"),
    )


def _create_requests() -> None:
    op.create_table(
        "requests",
        sa.Column(
            "position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("dedupe_key", sa.String(), nullable=False),
        sa.Column("seq_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("sampler_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column("num_sequences", sa.BigInteger(), nullable=False),
        sa.Column("payload_ref", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("result_ref", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("used_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("busy_s", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("dedupe_key", "tenant_id", name="uq_requests_retry"),
        sa.UniqueConstraint("request_id", name="uq_requests_id"),
    )
    op.create_index("ix_requests_payload", "requests", ["payload_ref"], **_only(sa.text("payload_ref <> ''")))
    op.create_index("ix_requests_queued", "requests", ["position"], **_only(sa.text("state = 'queued'")))
    op.create_index("ix_requests_result", "requests", ["result_ref"], **_only(sa.text("result_ref <> ''")))
    op.create_index("ix_requests_run", "requests", ["run_id", "seq_id"], **_only(sa.text("run_id <> ''")))


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("user_metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "kind", "name"),
    )
    op.create_index("ix_checkpoints_expiry", "checkpoints", ["expires_at"])
    op.create_index("ix_checkpoints_listing", "checkpoints", ["tenant_id", "created_at"])
