"""The planner: what a training run needs, how fast it goes, what fails and what it costs, before it starts.

Equations over a catalogue of hardware and fitted constants per software stack; nothing here imports torch, and nothing
here prints. `puna plan` parses, calls one function of this room and shows what it returns.
"""
