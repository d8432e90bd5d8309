"""Which object a request reads."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None

HAS_OBJECT = sa.text("object_key <> ''")


def upgrade() -> None:
    """Apply this step."""
    op.add_column("requests", sa.Column("object_key", sa.String(), nullable=False, server_default=""))
    op.create_index(
        "ix_requests_object", "requests", ["object_key"], sqlite_where=HAS_OBJECT, postgresql_where=HAS_OBJECT
    )


def downgrade() -> None:
    """Undo this step."""
    op.drop_index("ix_requests_object", "requests")
    op.drop_column("requests", "object_key")
