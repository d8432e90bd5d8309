"""Which trace a request belongs to. Code of 0011 runs on it, as the name says."""

import sqlalchemy as sa
from alembic import op

revision = "0012_from_0011"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step; processes of the version before go on beside it."""
    op.add_column("requests", sa.Column("trace_context", sa.String()))


def downgrade() -> None:
    """Undo this step."""
    op.drop_column("requests", "trace_context")
