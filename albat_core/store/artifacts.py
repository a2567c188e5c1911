"""Artifacts: immutable results under the key of what made them, valid once a manifest says so.

Layout below the root::

    <stage>/<key>/<attempt>/...    files, written by one attempt
    <stage>/<key>/manifest.json    written last, in one piece; names the attempt it vouches for
    latest/<stage>/<family>.json   a hint: the newest artifact of a family, safe to lose
    rolls/<stage>.json.gz          manifests of a stage once more, safe to lose
    claims/<stage>/<key>.json      while it is made: by whom
    claims/runs/<number>.json      while a run goes on

A run that is killed leaves files without a manifest, which nothing reads.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from albat_core.errors import AlbatError, ArtifactError, DamagedError
from albat_core.progress import waited_seconds
from albat_core.redaction import redacted, without_secrets
from albat_core.store import storage, transfer, verification
from albat_core.store.claims import claimed
from albat_core.store.drafts import PREFIX, new_draft
from albat_core.store.finding import refuse_to_make
from albat_core.store.manifests import (
    MANIFEST,
    ArtifactFile,
    Manifest,
    is_whole,
    library_versions,
    read_manifest,
)
from albat_core.store.rolls import find_many
from albat_core.store.scratch import no_scratch, scratch
from albat_core.store.sealed import sealed
from albat_core.store.stage import Settings, given, stage_key

logger = logging.getLogger(__name__)

CLAIMS = "claims"
_ASKED_ONE_BY_ONE = 32  # artifacts of a stage
_NAME = "^[A-Za-z0-9_-]{1,64}$"  # of one folder: references come from files that others write


class ArtifactRef(BaseModel):
    """Names an artifact: small, JSON, the same wherever it is passed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = Field(pattern=_NAME)
    key: str = Field(pattern=_NAME)
    reused: bool = False
    """Whether this run found it finished; says nothing of the artifact itself."""

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArtifactRef) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class Built(BaseModel):
    """What a stage's builder returns beside the files it wrote."""

    rows: int = 0
    facts: dict[str, Any] = {}


def artifact_ref(
    stage: str,
    stage_version: int,
    settings: Settings | Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> ArtifactRef:
    """Return the reference of the artifact that ``produce`` would make or find."""
    key = stage_key(stage, stage_version, _as_settings(settings).named, inputs)
    return ArtifactRef(stage=stage, key=key)


def _as_settings(settings: Settings | Mapping[str, Any]) -> Settings:
    return settings if isinstance(settings, Settings) else given(**settings)


class ArtifactStore:
    """The artifacts below one root, a local folder or a remote prefix."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)
        self._seen: dict[str, Manifest] = {}  # artifacts are immutable: looked at once

    def produce(
        self,
        stage: str,
        stage_version: int,
        settings: Settings | Mapping[str, Any],
        inputs: Mapping[str, Any],
        build: Callable[[Path], Built],
    ) -> ArtifactRef:
        """Return the artifact of these inputs, made by ``build`` only if none is finished.

        Args:
            stage: the stage's name.
            stage_version: raised when equal inputs would give different output.
            settings: what is configured: a configuration's settings, or some by name.
            inputs: what is read: artifact keys and fingerprints by role, JSON values.
            build: writes the artifact's files into the empty folder that it is given.

        Raises:
            StorageFullError: there is no room for it.
            UnfinishedError: there is none, and none is to be made, see ``finding``.
            HeldError: another makes it, and is passed by, see ``claims``.
        """
        settings = _as_settings(settings)
        ref = artifact_ref(stage, stage_version, settings, inputs)
        found = self.find(ref)
        if found is None:
            refuse_to_make(str(ref))
            with claimed(self.claim(ref), str(ref), lambda: self.find(ref)) as found:
                if found is None:
                    self._seen[str(ref)] = self._make(
                        ref, stage_version, settings.shown, inputs, build
                    )
                    return ref
        self._seen[str(ref)] = found  # in place of one whose files were lost
        logger.info("reused %s", ref)
        return ref.model_copy(update={"reused": True})

    def _make(
        self,
        ref: ArtifactRef,
        stage_version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, Any],
        build: Callable[[Path], Built],
    ) -> Manifest:
        began, waited = time.perf_counter(), waited_seconds()
        draft = self._draft_folder()
        place = storage.join(self.root, ref.stage, ref.key)
        try:
            built = build(draft)
            files = tuple(
                ArtifactFile(
                    path=file.relative_to(draft).as_posix(),
                    bytes=file.stat().st_size,
                    sha256=storage.digest(file),
                )
                for file in sorted(draft.rglob("*"))
                if file.is_file()
            )
            attempt = uuid.uuid4().hex[:8]
            transfer.upload(draft, storage.join(place, attempt))
            manifest = Manifest(
                stage=ref.stage,
                stage_version=stage_version,
                key=ref.key,
                attempt=attempt,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.perf_counter() - began - waited_seconds() + waited, 3),
                rows=built.rows,
                config=without_secrets(dict(config)),
                inputs=without_secrets(dict(inputs)),
                facts=without_secrets(built.facts),
                files=files,
                versions=library_versions(),
            )
            storage.write_bytes(storage.join(place, MANIFEST), sealed(manifest))
        except Exception as error:
            if storage.is_full(error):
                remote = storage.is_remote(self.root)
                raise (no_scratch() if remote else storage.no_space(str(draft))) from error
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        logger.info("made %s in %.1f s", ref, manifest.seconds)
        return manifest

    def find(self, ref: ArtifactRef) -> Manifest | None:
        """Return the manifest of a finished artifact, or None where files of it are lost.

        Files are not read: see ``folder``.

        Raises:
            ArtifactError: there is a folder in the manifest's place.
        """
        self._seen.pop(str(ref), None)
        try:
            content = storage.read_bytes(storage.join(self.root, ref.stage, ref.key, MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError as error:
            raise ArtifactError(
                "expected a manifest, which is a file, got a folder",
                where=storage.join(self.root, ref.stage, ref.key, MANIFEST),
                remedy="remove the folder",
            ) from error
        manifest = read_manifest(content, ref.stage, ref.key)
        if manifest is None:
            return None
        present = storage.file_sizes(self._folder_uri(manifest)) if manifest.files else {}
        return manifest if is_whole(manifest, present) else None

    def find_all(self, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, Manifest]:
        """Return the manifests of those that are finished, see ``find``.

        Many of a stage are looked for by one listing, see ``rolls``.
        """
        stages: dict[str, dict[str, ArtifactRef]] = defaultdict(dict)
        for ref in refs:
            self._seen.pop(str(ref), None)
            stages[ref.stage][ref.key] = ref
        found: dict[ArtifactRef, Manifest] = {}
        for stage, wanted in stages.items():
            if len(wanted) <= _ASKED_ONE_BY_ONE:
                found |= {ref: its for ref in wanted.values() if (its := self.find(ref))}
            else:
                many = find_many(self.root, stage, wanted)
                found |= {wanted[key]: manifest for key, manifest in many.items()}
        self._seen |= {str(ref): manifest for ref, manifest in found.items()}
        return found

    def claim(self, ref: ArtifactRef) -> str:
        """Return where it is said who makes an artifact."""
        return storage.join(self.root, CLAIMS, ref.stage, f"{ref.key}.json")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Say that a run goes on here while the context lasts: no artifact is pruned meanwhile."""
        claim = storage.join(self.root, CLAIMS, "runs", f"{uuid.uuid4().hex}.json")
        with claimed(claim, "a run", lambda: None):
            yield

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """Return an artifact's manifest.

        Raises:
            ArtifactError: it is not there or not whole.
        """
        manifest = self._seen.get(str(ref)) or self.find(ref)
        if manifest is None:
            raise ArtifactError(
                "expected a finished artifact, found none",
                where=f"{ref} below {self.root}",
                remedy="run the stage that makes it again",
            )
        self._seen[str(ref)] = manifest
        return manifest

    def reused(self, refs: Sequence[ArtifactRef]) -> list[ArtifactRef | None]:
        """Return, of each, the reference as ``produce`` does where it is finished, else None."""
        found = self.find_all(refs)
        return [ref.model_copy(update={"reused": True}) if ref in found else None for ref in refs]

    def manifests(self, refs: Sequence[ArtifactRef]) -> list[Manifest]:
        """Return the manifests of artifacts, see ``manifest``; many are read at once."""
        self.find_all(ref for ref in refs if str(ref) not in self._seen)
        return [self.manifest(ref) for ref in refs]

    def folder(self, ref: ArtifactRef) -> Path:
        """Return a local folder with the artifact's files, fetched first where it is remote.

        Files are held against their digests, once in a process.

        Raises:
            ArtifactError: it is not there or not whole.
            DamagedError: a file is not what was written; the artifact counts as lost from now on.
        """
        return self._verified(ref, [file.path for file in self.manifest(ref).files])

    def file(self, ref: ArtifactRef, name: str) -> Path:
        """Return the local path of one of the artifact's files; the others are not read.

        Raises:
            ArtifactError: it is not there or not whole.
            DamagedError: see ``folder``.
        """
        return self._verified(ref, [name]) / name

    def _verified(self, ref: ArtifactRef, names: Sequence[str]) -> Path:
        manifest = self.manifest(ref)
        written = {file.path: file.sha256 for file in manifest.files}
        wanted = {name: written[name] for name in names}
        place = self._folder_uri(manifest)
        folder = self._local_folder(manifest)
        wrong = verification.wrong_files(folder, wanted)
        if wrong and storage.is_remote(self.root):
            transfer.download(place, folder, only=wrong)
            wrong = verification.wrong_files(folder, wanted, again=wrong)
        if not wrong:
            if storage.is_remote(self.root):
                os.utime(folder)  # when its copy was last used
            return folder
        current = self.find(ref)
        if current is not None and current.attempt != manifest.attempt:
            return self.folder(ref)  # somebody has made it again
        with suppress(OSError, AlbatError):  # whoever may not write here cannot make it again
            storage.remove(storage.join(self.root, ref.stage, ref.key, MANIFEST))
        name, got = next(iter(wrong.items()))
        said = f"expected {place}/{name} with SHA-256 {written[name][:12]}, got {got[:12]}"
        logger.warning("%s: %s; it counts as lost and is made again", ref, redacted(said))
        raise DamagedError(
            said, where=str(ref), remedy="run the same command again: this artifact is made again"
        )

    def _local_folder(self, manifest: Manifest) -> Path:
        """Return where an artifact's files lie on this machine, or will once they are fetched."""
        if not storage.is_remote(self.root):
            return Path(self._folder_uri(manifest))
        root = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        name = (manifest.stage, manifest.key, manifest.attempt)
        return storage.cache_folder("artifacts", root, *name)

    def place(self, ref: ArtifactRef) -> str:
        """Return where the artifact's files lie, local or remote; nothing is fetched."""
        return self._folder_uri(self.manifest(ref))

    def changed_files(self, ref: ArtifactRef) -> list[str]:
        """Return the files whose content no longer has the digest that the manifest gives."""
        manifest = self.manifest(ref)
        folder = self._folder_uri(manifest)  # where it lies, not a copy that was fetched
        return [
            file.path
            for file in manifest.files
            if storage.digest(storage.join(folder, file.path)) != file.sha256
        ]

    def resolve(self, name: str) -> ArtifactRef:
        """Return the one artifact that ``name`` means: ``stage/key``, a key, or how one begins.

        Raises:
            ArtifactError: none or several match.
        """
        stage, _, start = name.rpartition("/")
        refs = [r for r in self.all_refs() if r.key.startswith(start) and stage in ("", r.stage)]
        if len(refs) != 1:
            found = ", ".join(map(str, refs[:5])) or "none"
            raise ArtifactError(
                f"expected one artifact named {name!r}, found {found}",
                where=self.root,
                remedy="give more of the key, or another --root",
            )
        return refs[0]

    def all_refs(self) -> Iterator[ArtifactRef]:
        """Yield every finished artifact below the root."""
        for path in sorted(storage.file_sizes(self.root)):
            parts = path.split("/")
            if len(parts) == 3 and parts[2] == MANIFEST:
                with suppress(ValidationError):  # a folder of somebody else's
                    yield ArtifactRef(stage=parts[0], key=parts[1])

    def latest(self, stage: str, family: str) -> ArtifactRef | None:
        """Return the newest artifact of a family whose parts may be reused, if one is known."""
        try:
            content = json.loads(storage.read_bytes(self._latest_uri(stage, family)))
            ref = ArtifactRef(stage=stage, key=content["key"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return ref if self.find(ref) else None

    def set_latest(self, family: str, ref: ArtifactRef) -> None:
        """Note ``ref`` as the newest of its family."""
        uri = self._latest_uri(ref.stage, family)
        storage.write_bytes(uri, json.dumps({"key": ref.key}).encode())

    def _latest_uri(self, stage: str, family: str) -> str:
        return storage.join(self.root, "latest", stage, f"{family}.json")

    def _folder_uri(self, manifest: Manifest) -> str:
        return storage.join(self.root, manifest.stage, manifest.key, manifest.attempt)

    def _draft_folder(self) -> Path:
        """Return a new empty folder, on the root's own disk where that is local."""
        if storage.is_remote(self.root):
            with scratch():
                return new_draft(Path(tempfile.gettempdir()), PREFIX)
        drafts = Path(self.root) / "drafts"
        with storage.writing(self.root):
            drafts.mkdir(parents=True, exist_ok=True)
            folder = new_draft(drafts)
            folder.chmod(drafts.stat().st_mode)  # mkdtemp's 0700 would hide it from other users
            return folder
