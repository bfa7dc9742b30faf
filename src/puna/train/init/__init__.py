"""Initial weights: a bigram model counted from the corpus, and heads that can copy."""
