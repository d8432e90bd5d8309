"""Quotas, device time by run, and the sizes of what is stored."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LIMITS = (
    "gpu_seconds_month", "gpu_seconds_day", "stored_bytes", "live_runs", "running_requests", "queued_requests",
    "tokens_per_s", "burst_tokens", "requests_per_s",
)  # fmt: skip
_KEY = ("tenant_id", "hour", "session_id", "base_model", "kind")


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "quotas",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        *(sa.Column(name, sa.Double()) for name in LIMITS),
        sa.Column("weight", sa.Double()),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "project_id"),
    )
    op.add_column("sessions", sa.Column("user_id", sa.String(), server_default="", nullable=False))
    op.add_column("runs", sa.Column("snapshot_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("samplers", sa.Column("size_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("requests", sa.Column("source_run_id", sa.String(), server_default="", nullable=False))
    # A primary key cannot be changed in place everywhere: the table is made anew.
    op.rename_table("usage", "old_usage")
    _create_usage("run_id", sa.Column("busy_us", sa.BigInteger(), nullable=False))
    op.execute(f"INSERT INTO usage ({', '.join(_KEY)}, amount, run_id, busy_us) "  # noqa: S608
               f"SELECT {', '.join(_KEY)}, amount, '', 0 FROM old_usage")  # fmt: skip
    op.drop_table("old_usage")


def downgrade() -> None:
    """Undo this step."""
    op.rename_table("usage", "new_usage")
    _create_usage()
    op.execute(f"INSERT INTO usage ({', '.join(_KEY)}, amount) "  # noqa: S608
               f"SELECT {', '.join(_KEY)}, SUM(amount) FROM new_usage GROUP BY {', '.join(_KEY)}")  # fmt: skip
    op.drop_table("new_usage")
    for table, column in (
        ("requests", "source_run_id"), ("samplers", "size_bytes"), ("runs", "snapshot_bytes"), ("sessions", "user_id"),
    ):  # fmt: skip
        op.drop_column(table, column)
    op.drop_table("quotas")


def _create_usage(run_id: str = "", *more: sa.Column[int]) -> None:
    key = (*_KEY, run_id) if run_id else _KEY
    texts = [sa.Column(name, sa.String(), nullable=False) for name in key if name != "hour"]
    op.create_table(
        "usage",
        *texts,
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        *more,
        sa.PrimaryKeyConstraint(*key),
    )
