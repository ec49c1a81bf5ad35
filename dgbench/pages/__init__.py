"""Pages: from numbers to what people look at, on a terminal, in a file, in a browser.

In: a `Study` of runs, and what `scores` makes of it: rankings, comparisons, published numbers beside measured ones.
Out: tables as text, Markdown, LaTeX, HTML and CSV; figures; pictures of cases; the report; the site.
Read `table` and `captions` first, then `score_tables`, `leaderboard`, `verdict` and `multiverse`; `drawing`, then
`figures`, `rank_map` and `pictures`; `report`, `site` (after `site_tables`), `after_run` and `notebook` put these
together. `progress`, `cards`, `commands` and `glossary` stand alone.
"""
