"""Rows to learn from: dialogues, examples cut from them, packed answers."""
