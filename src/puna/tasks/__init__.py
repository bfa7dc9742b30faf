"""Problems with exact checks: the rewards of tuning and the scores of evaluation.

A task makes a problem from a seed and a level and scores any text as an answer to it. Both give the same result in
every process, and no text, however long or hostile, makes a check raise, hang or run anything: only `puna.sandbox` runs
code that a model wrote.

`contract` says what a task is, `problems/` has the tasks, one file a family, and `catalogue` finds them by name.
`episodes` is the loop in which a model works on problems, `curriculum` chooses their levels, and `heldout` keeps those
for measuring apart from those for training.
"""
