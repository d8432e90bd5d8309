"""Checkpoints that share files, and runs that hold a copy."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("runs", sa.Column("copied_from", sa.String(), nullable=True))
    op.create_index("ix_checkpoints_key", "checkpoints", ["key"])
    op.create_table("doomed_objects", sa.Column("key", sa.String(), nullable=False), sa.PrimaryKeyConstraint("key"))


def downgrade() -> None:
    """Undo this step."""
    op.drop_table("doomed_objects")
    op.drop_index("ix_checkpoints_key", "checkpoints")
    op.drop_column("runs", "copied_from")
