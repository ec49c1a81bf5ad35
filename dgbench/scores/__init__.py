"""Scores: from finished runs to numbers, and how sure they are.

In: records of runs. Out: one `Study` of the runs of one table, with matrices, rows and case scores; rankings, also
under other choices; comparisons, reproductions; the boards of whole collections; problems found in folders. Nothing
here draws, prints or chooses words for a page. Read `study` first, then `statistics` (arrays only), `ranking`,
`comparison`; `case_cube`, `remeasure` and `multiverse` in this order; the others in any.
"""
