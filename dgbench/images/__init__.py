"""Images: from users' files to arrays that training and testing index.

In: files of the formats that `formats` lists, in the layout of a task, of a folder, or as a table says. Out: `Case`s,
and a `PreparedDomain` of memory-mapped arrays at network size. Read `pixels` and `formats` first (`dicom` and
`volume_formats` read the rest), then `file_task`, `own_task` with `folder_task` and `table_task`, `find_task`, and
`preparation` last; `adopt` makes a table, `mask_files` writes what was predicted, `fetch` downloads a task's files,
`mock` draws some, `cache` makes room.
"""
