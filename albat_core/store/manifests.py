"""Manifests: what an artifact is, with the digests of its files and one of its own."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from albat_core.store import storage
from albat_core.store.stage import canonical_json

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
_OWN_DIGEST = "sha256"  # of all else that a manifest says


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

    def written(self) -> bytes:
        """Return it as JSON, with a digest of its own."""
        said = json.loads(self.model_dump_json())
        return json.dumps(said | {_OWN_DIGEST: _digest(said)}, indent=1).encode()

    @classmethod
    def read(cls, content: bytes) -> "Manifest":
        """Return what was written; manifests of before have no digest of their own.

        Raises:
            ValueError: it is no manifest, or not as it was written.
        """
        said = json.loads(content)
        if not isinstance(said, dict):
            raise ValueError("expected a JSON object")
        own = said.pop(_OWN_DIGEST, None)
        if own not in (None, got := _digest(said)):
            raise ValueError(f"expected SHA-256 {own}, got {got}")
        return cls.model_validate(said)


def _digest(said: Any) -> str:
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()
