"""Running: from a plan to finished run folders.

In: a task, methods, a protocol, seeds. Out: one folder per run with its record, history, scores of every case, masks
and weights. Read `plan` (what a run is), `launchers` (a process for each), `train`, `test`, `records` (reading folders
again), then `predict`, `conformance`, `new_method`.
"""
