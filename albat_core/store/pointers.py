"""Pointers of Git LFS: what lies in a file's place where a clone fetched no large files."""

LONGEST = 1024
"""Bytes that a pointer has at most."""
REMEDY = "fetch the files themselves: `git lfs pull` in the folder's clone"

_FIRST = b"version https://git-lfs.github.com/spec/"


def is_pointer(content: bytes) -> bool:
    """Tell whether a file is a pointer, by all of it or by more than ``LONGEST`` bytes.

    A text about Git LFS may begin as pointers do, but goes on.
    """
    return content.startswith(_FIRST) and len(content) < LONGEST and b"\noid " in content
