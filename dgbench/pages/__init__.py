"""Pages: from numbers to what people look at, on a terminal, in a file, in a browser.

In: records and the numbers that `scores` makes of them. Out: tables as text, Markdown, LaTeX, HTML and CSV, figures,
the report. Read `tables` first, then `plots`, then `report`.
"""
