"""Bytes at local paths and at any fsspec url.

`stores` tells what a uri means, `listing` what there is; `files` reads and writes; `errors` tells
what a store's errors mean, `lease` which run works in a folder, `delimited` how a text file holds a
table.
"""

from ageray.storage.files import (
    CHECKSUM,
    MARKER,
    READERS,
    copy_tree,
    copy_within,
    create,
    half_written,
    is_draft,
    make_folder,
    read_bytes,
    read_checked,
    read_part,
    read_text,
    reading,
    remove,
    remove_tree,
    replace_folder,
    size,
    unfinished,
    write_bytes,
    write_checked,
    write_text,
)
from ageray.storage.listing import (
    below,
    exists,
    is_folder,
    list_files,
    names_below,
    walk,
)
from ageray.storage.stores import (
    ENDPOINT,
    absolute,
    filesystem,
    is_remote,
    join,
    use_endpoint,
)

__all__ = [
    "CHECKSUM",
    "ENDPOINT",
    "MARKER",
    "READERS",
    "absolute",
    "below",
    "copy_tree",
    "copy_within",
    "create",
    "exists",
    "filesystem",
    "half_written",
    "is_draft",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "make_folder",
    "names_below",
    "read_bytes",
    "read_checked",
    "read_part",
    "read_text",
    "reading",
    "remove",
    "remove_tree",
    "replace_folder",
    "size",
    "unfinished",
    "use_endpoint",
    "walk",
    "write_bytes",
    "write_checked",
    "write_text",
]
