"""Projects, usage, the audit log, and what requests cost."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = ("projects", "usage", "past_checkpoints", "audit_log")
_ENTRY_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NEW_COLUMNS = (("wall_s", sa.Double()), ("sampled_tokens", sa.BigInteger()), ("cached_tokens", sa.BigInteger()))


def upgrade() -> None:
    """Apply this step."""
    _create_projects()
    _create_usage()
    _create_past_checkpoints()
    _create_audit_log()
    for name, kind in _NEW_COLUMNS:
        op.add_column("requests", sa.Column(name, kind, server_default="0", nullable=False))
    op.execute("UPDATE sessions SET project_id = 'default' WHERE project_id IS NULL")
    op.execute(
        "INSERT INTO projects (tenant_id, project_id, created_at) "
        "SELECT tenant_id, project_id, MIN(created_at) FROM sessions GROUP BY tenant_id, project_id"
    )


def downgrade() -> None:
    """Undo this step."""
    for name, _ in _NEW_COLUMNS:
        op.drop_column("requests", name)
    for table in TABLES:
        op.drop_table(table)


def _create_projects() -> None:
    op.create_table(
        "projects",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "project_id"),
    )


def _create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "hour", "session_id", "base_model", "kind"),
    )


def _create_past_checkpoints() -> None:
    op.create_table(
        "past_checkpoints",
        sa.Column("entry_id", _ENTRY_ID, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id"),
    )
    op.create_index("ix_past_checkpoints_listing", "past_checkpoints", ["tenant_id", "ended_at"])


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("entry_id", _ENTRY_ID, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id"),
    )
    op.create_index("ix_audit_log_listing", "audit_log", ["tenant_id", "created_at"])
