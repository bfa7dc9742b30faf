"""Corpora: build a corpus directory from documents, and read batches from one. Imports no torch."""
