"""Users, what keys may do, and shares."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY_COLUMNS = ("role", "user_id", "project_id", "expires_at", "last_used_at", "replaced_by")


def upgrade() -> None:
    """Apply this step. Keys that are there stay what they were: their tenant's own, with all rights."""
    op.add_column("tenants", sa.Column("disabled_at", sa.Double(), nullable=True))
    op.add_column("api_keys", sa.Column("role", sa.String(), server_default="admin", nullable=False))
    op.add_column("api_keys", sa.Column("user_id", sa.String(), server_default="", nullable=False))
    op.add_column("api_keys", sa.Column("project_id", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("expires_at", sa.Double(), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.Double(), nullable=True))
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(), nullable=True))
    op.create_index("ix_api_keys_listing", "api_keys", ["tenant_id", "created_at"])
    _create_users()
    _create_shares()


def downgrade() -> None:
    """Undo this step."""
    op.drop_table("shares")
    op.drop_table("users")
    op.drop_index("ix_api_keys_listing", "api_keys")
    for column in KEY_COLUMNS:
        op.drop_column("api_keys", column)
    op.drop_column("tenants", "disabled_at")


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("display_name", sa.String(), nullable=False),
        sa.Column("disabled_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("user_id"),
    )
    for column in ("email", "subject"):
        is_named = sa.text(f"{column} <> ''")
        op.create_index(
            f"uq_users_{column}",
            "users",
            ["tenant_id", column],
            unique=True,
            sqlite_where=is_named,
            postgresql_where=is_named,
        )


def _create_shares() -> None:
    op.create_table(
        "shares",
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.create_index("ix_shares_listing", "shares", ["tenant_id", "created_at"])
