"""Evaluation: benchmarks, the runner that asks a model, and the report.

`contract` says what a benchmark is. `catalogue` finds benchmarks by name, Puna's own in `benchmarks/` and those of
plugins. `runner` asks a model every item through `generation` and scores the answers with the benchmark's scorer;
`scoring/` holds what scorers share. `results` turns the scores into figures with intervals and baselines, `evaluate`
does all of it for one command, and `report` draws the page.
"""
