"""Running: from a plan to finished run folders.

In: a task, methods, a protocol, seeds. Out: one folder per run with its record, history, scores of every case, masks
and weights. Read `plan` (what a run is), `launchers` (a process for each), `worker` (what it does there), `train`,
`test`, `description` (run.json), `records` (reading folders again), then `device`, `predict`, `conformance`,
`new_method`.
"""
