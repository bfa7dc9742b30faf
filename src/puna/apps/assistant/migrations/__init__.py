"""Alembic revisions of the assistant's tables."""
