"""Images: from users' files to arrays that training and testing index.

In: PNG, JPEG, TIFF and NIfTI files, in the layout of a task or of a folder. Out: `Case`s, and a `PreparedDomain` of
memory-mapped arrays at network size. Read `formats` first, then `file_task`, `folder_task`, `find_task`, and
`preparation` last; `fetch` downloads a task's files, `mock` draws some, `cache` makes room.
"""
