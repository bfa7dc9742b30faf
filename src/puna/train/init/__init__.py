"""First weights: counted from the corpus, with heads that can copy."""
