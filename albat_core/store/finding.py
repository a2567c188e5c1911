"""Looking for what is finished, where nothing may be made."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from albat_core.errors import ArtifactError

_ONLY = ContextVar("only_finding", default=False)


class UnfinishedError(ArtifactError):
    """An artifact would have to be made, where only finished ones are looked for."""


@contextmanager
def only_finding() -> Iterator[None]:
    """Make no artifact in this context: who would have to gets ``UnfinishedError``."""
    token = _ONLY.set(True)
    try:
        yield
    finally:
        _ONLY.reset(token)


def refuse_to_make(name: str) -> None:
    """Raise where an artifact may only be found.

    Args:
        name: of the artifact.

    Raises:
        UnfinishedError: it would be made now.
    """
    if _ONLY.get():
        raise UnfinishedError(
            "expected a finished artifact, found none",
            where=name,
            remedy="run the command that makes it",
        )
