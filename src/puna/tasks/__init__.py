"""Problems whose answers can be checked: what tuning rewards and evaluation counts.

A task makes a problem from a seed and a level and scores any text as its answer. Both are the same in every process,
and no text, however long or hostile, makes a check raise, hang or run anything: model code is run by `puna.sandbox`
alone.
"""
