"""Show a run: live in the terminal, and afterwards as one HTML page."""
