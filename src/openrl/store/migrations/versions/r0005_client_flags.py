"""Ended samples have an order, and clients of a sampler have numbers."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

IS_ENDED = sa.text("end_position > 0")


def upgrade() -> None:
    """Apply this step."""
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.bulk_insert(counters, [{"name": "ended_samples", "value": 0}])
    op.add_column("samplers", sa.Column("num_joined", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("requests", sa.Column("end_position", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index(
        "ix_requests_ended",
        "requests",
        ["sampler_id", "end_position"],
        sqlite_where=IS_ENDED,
        postgresql_where=IS_ENDED,
    )


def downgrade() -> None:
    """Undo this step."""
    op.drop_index("ix_requests_ended", "requests")
    op.drop_column("requests", "end_position")
    op.drop_column("samplers", "num_joined")
    op.drop_table("counters")
