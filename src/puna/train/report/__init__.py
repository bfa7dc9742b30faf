"""A run as people see it: live in the terminal, and afterwards as one HTML page."""
