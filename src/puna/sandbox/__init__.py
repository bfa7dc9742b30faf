"""Runs untrusted programs behind graded walls; only plain values come back.

`run.run_python` is the way in. How strong the walls are depends on the machine (`limits`, `confined`, `isolated`), and
a caller says which level it needs at least: below that nothing runs. `check` attacks the walls and reports what held.
"""
