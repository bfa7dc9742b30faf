"""Create conversations, messages, feedback and comparisons.

Databases from before version tables have these tables already, with `schema_version` 1 in puna_meta (see
`schema._legacy`).
"""

import sqlalchemy as sa
from alembic import op

revision = "assistant_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "puna_meta",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user", sa.Text, nullable=False, index=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("system", sa.Text, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("leaf", sa.String(36)),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False, index=True),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column(
            "conversation",
            sa.String(36),
            sa.ForeignKey("conversations.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("parent", sa.String(36), sa.ForeignKey("messages.id", ondelete="CASCADE"), index=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("reasoning", sa.Text, nullable=False),
        sa.Column("tokens", sa.JSON),
        sa.Column("model", sa.Text),
        sa.Column("weight_version", sa.Integer),
        sa.Column("usage", sa.JSON),
        sa.Column("finish_reason", sa.String(16)),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column("message", sa.String(36), sa.ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("rating", sa.Integer),
        sa.Column("correction", sa.Text),
        sa.Column("created", sa.Double, nullable=False),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user", sa.Text, nullable=False, index=True),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("model_a", sa.Text, nullable=False),
        sa.Column("model_b", sa.Text, nullable=False),
        sa.Column("weight_version_a", sa.Integer),
        sa.Column("weight_version_b", sa.Integer),
        sa.Column("text_a", sa.Text, nullable=False),
        sa.Column("text_b", sa.Text, nullable=False),
        sa.Column("better", sa.String(8)),
        sa.Column("created", sa.Double, nullable=False),
    )
