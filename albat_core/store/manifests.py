"""Manifests: what an artifact is, with the digests of its files and one of its own."""

import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from albat_core.store import storage
from albat_core.store.sealed import unsealed, why

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
_VERSIONS_KEPT = (
    "albat",
    "torch",
    "transformers",
    "peft",
    "diffusers",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "pyarrow",
    "numpy",
)


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


def read_manifest(content: bytes, stage: str, key: str) -> Manifest | None:
    """Return the manifest of an artifact, None where it cannot be read or is another's."""
    ref = f"{stage}/{key}"
    try:
        manifest = unsealed(Manifest, content)
    except ValueError as error:
        told = "%s has a manifest that cannot be read (%s): it is made again"
        logger.warning(told, ref, why(error))
        return None
    if (manifest.stage, manifest.key) != (stage, key):
        said = f"{manifest.stage}/{manifest.key}"
        logger.warning("%s has the manifest of %s: it is made again", ref, said)
        return None
    return manifest


def is_whole(manifest: Manifest, present: Mapping[str, int], place: str = "") -> bool:
    """Tell whether all files of an artifact are there, by their sizes.

    Args:
        manifest: of the artifact.
        present: bytes of each file that is listed.
        place: what stands before the files' names there.
    """
    lost = [file.path for file in manifest.files if present.get(place + file.path) != file.bytes]
    if lost:
        told = "%s/%s has lost or changed %s: it is made again"
        logger.warning(told, manifest.stage, manifest.key, ", ".join(lost))
    return not lost


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that results may depend on."""
    versions = {}
    for name in _VERSIONS_KEPT:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
