"""Scores: from finished runs to numbers and how sure they are.

In: records of runs. Out: matrices, rankings, comparisons, reproductions, problems found. Nothing here draws or prints.
Read `statistics` (arrays only) first, then `ranking`, `comparison`, and the others in any order.
"""
