"""The lifecycle of a model as a pure state machine: `(state, event) -> (state, effects)`.

May import no other package of the loader; no clock, no tasks, no I/O.
"""
