"""The errors that albat raises: each says what was expected and got, where, and what to do."""

from albat_core.redaction import redacted


class AlbatError(Exception):
    """Base of every error that a person can act on; secrets of addresses are left out.

    Args:
        message: what was expected and what was got.
        where: file, row, config field or artifact at fault.
        remedy: what to do about it.
    """

    def __init__(self, message: str, where: str = "", remedy: str = "") -> None:
        self.message, self.where, self.remedy = map(redacted, (message, where, remedy))
        super().__init__(self.message, self.where, self.remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  -> {self.remedy}" if self.remedy else text


class ConfigError(AlbatError):
    """The configuration cannot be used; the message lists every mistake found."""


class InputError(AlbatError):
    """A corpus, an adaptation set or one of their rows cannot be used."""


class BackboneError(AlbatError):
    """A backbone or adapter cannot be loaded or does not fit."""


class DimensionMismatchError(AlbatError):
    """Two sets of vectors disagree on their dimension."""


class ArtifactError(AlbatError):
    """An artifact is missing, incomplete or changed."""


class DamagedError(ArtifactError):
    """A file of an artifact, which ``where`` names, is not what was written."""


class TrainingError(AlbatError):
    """Training cannot go on: the loss is not finite."""


class ProcessError(AlbatError):
    """A process that computes for this one ended before it was done."""


class StorageFullError(AlbatError):
    """No space is left where artifacts are written."""


class MissingDependencyError(AlbatError):
    """An optional library is needed and not installed."""


class TransientError(AlbatError):
    """A failure of storage or network that trying again may cure."""


class Interrupted(AlbatError):  # noqa: N818 - it is no error
    """A person asked to stop; what was finished is kept."""
