"""A sandbox for untrusted Python on Linux: `run.run_python`, graded levels of isolation, and attacks on them."""
