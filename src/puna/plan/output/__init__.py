"""How estimates are shown: text for the terminal, JSON, HTML with charts. Nothing here computes."""
