"""Long-context extension."""
