"""Manifests: what an artifact is, with the digests of its files and one of its own."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from albat_core.store import storage

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1


def _inner(name: str) -> str:
    if not storage.is_inner(name):
        raise ValueError(f"expected a name inside the artifact, got {name!r}")
    return name


class ArtifactFile(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(_inner)]
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is: how it was made, from what, and which files it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_schema: int = MANIFEST_SCHEMA
    stage: str
    stage_version: int
    key: str
    attempt: str = Field(pattern="^[0-9a-f]{8}$")
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """Wall-clock seconds it took to make."""
    rows: int
    """Rows of data in it."""
    config: dict[str, Any]
    inputs: dict[str, Any]
    facts: dict[str, Any]
    """What the stage measured or counted, by name."""
    files: tuple[ArtifactFile, ...]
    versions: dict[str, str]
    """Library versions that made it."""
