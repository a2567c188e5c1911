"""Errors for files that are there by what storage lists, and do not come, or not whole."""

from albat_core.errors import TransientError


def too_short(uri: str, wanted: int, got: int) -> TransientError:
    """Return the error for what came of a file, where that is not all of it."""
    return TransientError(
        f"expected {wanted} bytes, got {got}",
        where=uri,
        remedy="the connection broke, or somebody writes the file now: run the same command again",
    )


def not_found(uri: str) -> TransientError:
    """Return the error for a file that is listed and cannot be found."""
    return TransientError(
        "expected a file, as it is listed, got none",
        where=uri,
        remedy="the storage is behind, or somebody removes it now: run the same command again",
    )
