"""Store whether a base model wrote an answer, so that it is shown as text when the model is no longer served."""

import sqlalchemy as sa
from alembic import op

revision = "assistant_0003"
down_revision = "assistant_0002"


def upgrade() -> None:
    op.add_column("messages", sa.Column("stage", sa.String(8)))
