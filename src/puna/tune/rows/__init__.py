"""Rows to learn from: dialogues, examples cut from them, answers packed side by side."""
