"""The tables of the store, for any SQL database; `migrations/` brings a database to this shape."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

from openrl.store.quotas import LIMIT_NAMES

metadata = MetaData()

# SQLite makes a column its row id only when the type is spelt INTEGER; it holds 64 bits either way.
POSITION = BigInteger().with_variant(Integer(), "sqlite")
# Without none_as_null an absent value would be stored as the JSON text "null".
OPTIONAL_JSON = JSON(none_as_null=True)

HAS_ENDED_SAMPLE = text("end_position > 0")
IS_QUEUED = text("state = 'queued'")
IS_LIVE_RUN = text("NOT is_closed")
HAS_EMAIL = text("email <> ''")
HAS_SUBJECT = text("subject <> ''")
HAS_RUN = text("run_id <> ''")
HAS_PAYLOAD = text("payload_ref <> ''")
HAS_RESULT = text("result_ref <> ''")
HAS_OBJECT = text("object_key <> ''")

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
)

users = Table(
    "users",
    metadata,
    Column("user_id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("role", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("email", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("display_name", String, nullable=False),
    Column("disabled_at", Double),
    Index("uq_users_email", "tenant_id", "email", unique=True, sqlite_where=HAS_EMAIL, postgresql_where=HAS_EMAIL),
    Index(
        "uq_users_subject",
        "tenant_id",
        "subject",
        unique=True,
        sqlite_where=HAS_SUBJECT,
        postgresql_where=HAS_SUBJECT,
    ),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_hash", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("label", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("role", String, nullable=False, server_default="admin"),
    Column("user_id", String, nullable=False, server_default=""),
    Column("project_id", String),
    Column("expires_at", Double),
    Column("last_used_at", Double),
    Column("replaced_by", String),
    Index("ix_api_keys_listing", "tenant_id", "created_at"),
)

shares = Table(  # tokens that let their holders read a checkpoint
    "shares",
    metadata,
    Column("token_hash", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("run_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("label", String, nullable=False),
    Column("revoked_at", Double),
    Index("ix_shares_listing", "tenant_id", "created_at"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_heartbeat_at", Double, nullable=False),
    Column("sdk_version", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("user_metadata", OPTIONAL_JSON),
    Column("display_name", String),
    Column("project_id", String),
    Column("state", String, nullable=False),
    Column("end_reason", String),
    Column("idempotency_key", String),
    Column("user_id", String, nullable=False, server_default=""),
    UniqueConstraint("tenant_id", "idempotency_key", name="uq_sessions_idempotency"),
    Index("ix_sessions_listing", "tenant_id", "created_at"),
    Index("ix_sessions_silent", "state", "last_heartbeat_at"),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("seed", String, nullable=False),  # as text: seeds reach 2**64 - 1, past a signed 64-bit column
    Column("train_attn", Boolean, nullable=False),
    Column("train_mlp", Boolean, nullable=False),
    Column("train_unembed", Boolean, nullable=False),
    Column("session_id", String, nullable=False),
    Column("model_seq_id", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_request_at", Double, nullable=False),
    Column("optimizer_config", JSON, nullable=False),
    Column("user_metadata", OPTIONAL_JSON),
    Column("snapshot_key", String),
    Column("snapshot_seq_id", BigInteger, nullable=False),
    Column("is_closed", Boolean, nullable=False),
    Column("snapshot_bytes", BigInteger, nullable=False, server_default="0"),
    Column("copied_from", String),
    UniqueConstraint("tenant_id", "session_id", "model_seq_id", name="uq_runs_retry"),
    Index("ix_runs_listing", "tenant_id", "created_at"),
    Index("ix_runs_live", "created_at", sqlite_where=IS_LIVE_RUN, postgresql_where=IS_LIVE_RUN),
)

samplers = Table(
    "samplers",
    metadata,
    Column("sampler_id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("sampling_session_seq_id", BigInteger, nullable=False),
    Column("model_path", String),
    Column("adapter_key", String),
    Column("is_ephemeral", Boolean, nullable=False),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    Column("num_joined", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("tenant_id", "session_id", "sampling_session_seq_id", name="uq_samplers_retry"),
)

requests = Table(
    "requests",
    metadata,
    Column("position", POSITION, primary_key=True, autoincrement=False),
    Column("request_id", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("dedupe_key", String, nullable=False),
    Column("seq_id", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("run_id", String, nullable=False),
    Column("sampler_id", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_sequences", BigInteger, nullable=False),
    Column("payload_ref", String, nullable=False),
    Column("state", String, nullable=False),
    Column("result_ref", String, nullable=False),
    Column("error", String, nullable=False),
    Column("category", String, nullable=False),
    Column("finished_at", Double),
    Column("end_position", BigInteger, nullable=False, server_default="0"),
    Column("used_tokens", BigInteger, nullable=False, server_default="0"),  # as the worker counted them
    Column("busy_s", Double, nullable=False, server_default="0"),
    Column("wall_s", Double, nullable=False, server_default="0"),  # from the start of the execution to its end
    Column("sampled_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("object_key", String, nullable=False, server_default=""),
    Column("source_run_id", String, nullable=False, server_default=""),
    Column("trace_context", String),
    UniqueConstraint("request_id", name="uq_requests_id"),
    UniqueConstraint("dedupe_key", "tenant_id", name="uq_requests_retry"),
    # Partial indexes: each holds only the rows that its query can want, so old rows cost nothing.
    Index("ix_requests_queued", "position", sqlite_where=IS_QUEUED, postgresql_where=IS_QUEUED),
    Index("ix_requests_run", "run_id", "seq_id", sqlite_where=HAS_RUN, postgresql_where=HAS_RUN),
    Index("ix_requests_payload", "payload_ref", sqlite_where=HAS_PAYLOAD, postgresql_where=HAS_PAYLOAD),
    Index(
        "ix_requests_ended",
        "sampler_id",
        "end_position",
        sqlite_where=HAS_ENDED_SAMPLE,
        postgresql_where=HAS_ENDED_SAMPLE,
    ),
    Index("ix_requests_object", "object_key", sqlite_where=HAS_OBJECT, postgresql_where=HAS_OBJECT),
    Index("ix_requests_result", "result_ref", sqlite_where=HAS_RESULT, postgresql_where=HAS_RESULT),
)

# Numbers given out in the order of commits; a row for each series, locked by whoever takes numbers from it.
counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
ENDED_SAMPLES = "ended_samples"

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("key", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("is_public", Boolean, nullable=False),
    Column("user_metadata", OPTIONAL_JSON),
    Index("ix_checkpoints_listing", "tenant_id", "created_at"),
    Index("ix_checkpoints_expiry", "expires_at"),
    Index("ix_checkpoints_key", "key"),
)

projects = Table(
    "projects",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("project_id", String, primary_key=True),
    Column("created_at", Double, nullable=False),
)

usage = Table(  # survives the requests it was counted from
    "usage",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),  # since the epoch
    Column("session_id", String, primary_key=True),
    Column("run_id", String, primary_key=True),  # empty: of no run
    Column("base_model", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("busy_us", BigInteger, nullable=False),  # device time; whole numbers, so that sums agree exactly
)

quotas = Table(  # what was set for tenants and, with a project_id, for projects; NULL: the default
    "quotas",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("project_id", String, primary_key=True),
    *(Column(name, Double) for name in LIMIT_NAMES),
    Column("weight", Double),
    Column("changed_at", Double, nullable=False),
)

past_checkpoints = Table(  # what deleted and replaced checkpoints held, and for how long
    "past_checkpoints",
    metadata,
    Column("entry_id", POSITION, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("run_id", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double, nullable=False),
    Index("ix_past_checkpoints_listing", "tenant_id", "ended_at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("entry_id", POSITION, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("category", String, nullable=False),
    Column("event", String, nullable=False),
    Column("details", JSON, nullable=False),
    Index("ix_audit_log_listing", "tenant_id", "created_at"),
)

loss_uses = Table(  # who has created or called a custom loss, and when last
    "loss_uses",
    metadata,
    Column("key", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("used_at", Double, nullable=False),
)

# Files to delete: the row comes with the end of the last reference, and goes when the files are gone.
doomed_objects = Table("doomed_objects", metadata, Column("key", String, primary_key=True))

# Who may do what only one process may do. Times are the database's.
leases = Table(
    "leases",
    metadata,
    Column("name", String, primary_key=True),
    Column("holder", String, nullable=False),  # empty: nobody
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("address", String, nullable=False),
)

scheduler_status = Table(  # one row: what the scheduler published last, and under which lease
    "scheduler_status",
    metadata,
    Column("lease_name", String, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("body", JSON, nullable=False),
)

writers = Table(  # PostgreSQL: the last group that each process committed
    "writers",
    metadata,
    Column("writer_id", String, primary_key=True),
    Column("last_group", BigInteger, nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False),
)
