"""Store the sampling settings of comparisons, so that their answers can be reproduced."""

import sqlalchemy as sa
from alembic import op

revision = "assistant_0002"
down_revision = "assistant_0001"


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("settings", sa.JSON))
    # A Puna from before version tables looks here, and refuses to open the database rather than misread it.
    meta = sa.table("puna_meta", sa.column("key", sa.String), sa.column("value", sa.Text))
    op.execute(meta.delete().where(meta.c.key == "schema_version"))
    op.execute(meta.insert().values(key="schema_version", value="2"))
