"""Results as people and other programs read them: pages, model cards, comparisons."""
