"""What can go wrong around a run, each thing done for real: see test_matrix.py for all of it, and docs/failures.md."""
