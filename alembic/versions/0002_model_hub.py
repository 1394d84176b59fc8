"""The cache of the model hub: config.json by commit, and the commit that a branch was at."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "hub_configs",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=False),
        sa.Column("config", JSONB(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("fetched_at", _MOMENT, nullable=False),
        sa.Column("used_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "sha", name="pk_hub_configs"),
    )
    op.create_table(
        "hub_revisions",
        sa.Column("hub", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=False),
        sa.Column("checked_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("hub", "model_id", "revision", name="pk_hub_revisions"),
    )


def downgrade() -> None:
    """Drop both tables; what they hold can be asked for again."""
    op.drop_table("hub_revisions")
    op.drop_table("hub_configs")
