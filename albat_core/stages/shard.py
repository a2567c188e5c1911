"""The corpus: rows of its sources, cut to the backbone's size and kept as shards of examples."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from albat_core.backbones import input_fingerprint, open_splitter, row_limit
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.kind import RowLimit, Splitter
from albat_core.errors import InputError
from albat_core.progress import track
from albat_core.records import ids
from albat_core.records.examples import Example, example_text, examples_to_table
from albat_core.records.hashes import Hashes
from albat_core.records.shards import Part, parts_of
from albat_core.records.tables import read_table, write_table
from albat_core.sources.checks import no_rows, null_row
from albat_core.sources.config import SourceConfig
from albat_core.sources.contents import refuse_changed
from albat_core.sources.files import InputFile, amount_of
from albat_core.sources.filters import judge, library_versions
from albat_core.sources.rows import PlacedRow, document_hash, in_share, placed_rows, untold
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built, artifact_ref
from albat_core.store.stage import Runtime, StageConfig

STAGE = "shards"
STAGE_VERSION = 10  # bump when equal inputs would give different output
IDS_VERSION = 1  # the same, of hashes of ids

_SKIPPED = ("null", "uncaptioned", "damaged", "filtered", "unfit")  # reasons
_TAKEN = ("left_out", "split", "truncated", "printed")
_IDS_KEPT = 5  # ids of skipped rows that the manifest names
_PART_BYTES = 64 << 20  # of pictures in a part file
_AT_ONCE = 256  # texts that are looked at together


class ShardConfig(StageConfig):
    """How examples are laid out in files."""

    rows: int = Field(4096, ge=1)
    """Examples in a part file at most; what is held in memory at once."""


def make_shards(
    file: InputFile, backbone_config: BackboneConfig, config: ShardConfig, runtime: Runtime
) -> ArtifactRef:
    """Cut a file's rows to the backbone's size and keep them as Parquet parts of examples.

    The manifest's facts: ``files``; ``rows`` read, of which ``null_rows`` (``null_ids``) had no
    text, or no picture where there should be one, ``uncaptioned_rows`` a picture but no text,
    ``damaged_rows`` a picture that cannot be read, ``left_out_rows`` were not in the share and
    ``unfit_rows`` could not be cut; ``filtered_rows`` were left out whole by filters, counted in
    ``filtered_reasons``; ``blank_columns``, for want of which rows were skipped;
    ``split_rows`` were cut, ``truncated_rows`` to their beginning, ``printed_rows`` had a number as
    text; ``documents`` and examples by ``sources`` in ``parts``.

    Raises:
        InputError: the file or a row cannot be used, or an id occurs twice.
        MissingDependencyError: filters are set, and their library is not installed.
    """

    def build(folder: Path) -> Built:
        shards = _Shards(folder, config.rows)
        facts = _cut(file, open_splitter(backbone_config), backbone_config, shards)
        shards.close()
        refuse_changed(file.uris, file.states)
        if (repeated := shards.repeated_id()) is not None:
            raise _repeated_within(file, repeated)
        facts |= {"parts": shards.parts, "sources": dict(sorted(shards.sources.items()))}
        return Built(rows=shards.examples, facts=facts)

    reads = input_fingerprint(backbone_config)
    settings, inputs = _identity(file, backbone_config, config, reads)
    return ArtifactStore(runtime.root).produce(STAGE, STAGE_VERSION, settings, inputs, build)


def find_shards(
    files: Sequence[InputFile],
    backbone_config: BackboneConfig,
    config: ShardConfig,
    runtime: Runtime,
) -> list[ArtifactRef | None]:
    """Return what ``make_shards`` would find finished of each file, else None; all at once."""
    reads = input_fingerprint(backbone_config)
    each = [_identity(file, backbone_config, config, reads) for file in files]
    refs = [artifact_ref(STAGE, STAGE_VERSION, *identity) for identity in each]
    return ArtifactStore(runtime.root).reused(refs)


def _identity(
    file: InputFile, backbone_config: BackboneConfig, config: ShardConfig, reads: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and inputs of a file's shards.

    Args:
        file: that is cut.
        backbone_config: whose size.
        config: of the shards.
        reads: what decides how the backbone reads rows.
    """
    settings = {
        "source": file.config.settings(without={"path"}),
        "shards": config.settings(),
        "max_length": backbone_config.max_length,
    }
    if file.config.filters:
        settings["rules"] = library_versions()  # another version may judge otherwise
    return settings, {"file": file.fingerprint, "backbone": reads}


class _Shards:
    """Writes examples to part files; holds one part's examples."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.parts: list[dict[str, Any]] = []
        self.sources: Counter[str] = Counter()
        self.examples = 0
        self._folder = folder
        self._rows = rows
        self._waiting: list[Example] = []
        self._bytes = 0
        self._hashes = Hashes()

    def add(self, example: Example) -> None:
        """Take an example; a full part is written."""
        self._waiting.append(example)
        self._hashes.add(_hash(example.example_id))
        self.sources[example.source] += 1
        self.examples += 1
        self._bytes += len(example.image or b"")
        if len(self._waiting) == self._rows or self._bytes >= _PART_BYTES:
            self.close()

    def close(self) -> None:
        """Write what waits to be."""
        if self._waiting:
            name = f"part-{len(self.parts):05d}.parquet"
            write_table(examples_to_table(self._waiting), self._folder / name)
            self.parts.append({"name": name, "rows": len(self._waiting)})
            self._waiting, self._bytes = [], 0

    def repeated_id(self) -> str | None:
        """Return an id that two of the examples share, if any."""
        suspects = self._hashes.repeated()
        files = (("", self._folder / part["name"]) for part in self.parts)
        found = _first_repeat(files, suspects)
        return found[0] if found else None


def _cut(
    file: InputFile,
    splitter: Splitter,
    backbone_config: BackboneConfig,
    shards: _Shards,
) -> dict[str, Any]:
    """Add the pieces of a file's rows to ``shards``; return what was counted."""
    counts: Counter[str] = Counter()
    blank: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    left_out_for = judge(file.config.filters)
    ids: dict[str, list[str]] = {why: [] for why in _SKIPPED}
    documents = Hashes()

    def skip(why: str, row: Example) -> None:
        counts[why] += 1
        if counts[why] <= _IDS_KEPT:
            ids[why].append(row.example_id)

    def used(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
        for placed in rows:
            counts["rows"] += 1
            if lacking := placed.lacks(file.config):
                if file.config.on_null == "refuse":
                    raise null_row(lacking, placed, file.config)
                skip(lacking, placed.example)
                blank.update(placed.blank)
                continue
            if not in_share(document_hash(placed.example.document), file.config):
                counts["left_out"] += 1
                continue
            if reason := left_out_for(example_text(placed.example)):
                skip("filtered", placed.example)
                reasons[reason] += 1
                continue
            yield placed

    at_once = 1 if file.config.image_column else _AT_ONCE  # pictures may be large
    with track(f"cut {file.label}", *amount_of(file)) as advance:
        for placed, fits in _looked_at(used(placed_rows(file, advance)), splitter, at_once):
            try:
                pieces = [placed.example] if fits else splitter.pieces(placed.whole())
            except InputError as error:
                if placed.picture is None or file.config.on_damaged == "refuse":
                    raise InputError(error.message, placed.place, error.remedy) from error
                skip("damaged", placed.example)
                continue
            whole = [piece.example_id for piece in pieces] == [placed.example.example_id]
            if not whole and file.config.overlong == "refuse":
                raise overlong(placed, row_limit(backbone_config))
            if not pieces:
                skip("unfit", placed.example)
                continue
            cut = "truncated" if file.config.overlong == "truncate" else "split"
            counts[cut] += not whole
            counts["printed"] += placed.printed
            documents.add(document_hash(placed.example.document))
            for piece in pieces[:1] if cut == "truncated" else pieces:
                shards.add(piece)
    return {
        "files": list(file.uris),
        "rows": counts["rows"],
        "documents": documents.distinct(),
        **{f"{name}_rows": counts[name] for name in (*_SKIPPED, *_TAKEN)},
        **{f"{name}_ids": first for name, first in ids.items()},
        "blank_columns": dict(sorted(blank.items())),
        "filtered_reasons": dict(sorted(reasons.items())),
    }


def _looked_at(
    rows: Iterator[PlacedRow], splitter: Splitter, at_once: int
) -> Iterator[tuple[PlacedRow, bool]]:
    """Yield rows, each with whether it is sure to stay as it is; so many are looked at together."""
    while some := list(islice(rows, at_once)):
        fitting = splitter.fitting([row.example for row in some])
        for row, fits in zip(some, fitting, strict=True):
            yield row, fits and row.picture is None


def overlong(row: PlacedRow, limit: RowLimit) -> InputError:
    """Return the error for a row that would have to be cut."""
    return InputError(
        f"expected a row that fits whole in {limit.amount}, it does not",
        where=row.place,
        remedy=f"{limit.remedy}, or set overlong to split or truncate",
    )


def _repeated(hashes: npt.NDArray[np.uint64]) -> set[int]:
    """Return the values that occur more than once in ``hashes`` (n,)."""
    ordered = np.sort(hashes)
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _hash(example_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(example_id.encode(), digest_size=8).digest())


def _ids_in(path: Path) -> list[str]:
    found: list[str] = read_table(path, ["example_id"])["example_id"].to_pylist()
    return found


def _first_repeat(
    files: Iterable[tuple[str, Path]], suspects: set[int]
) -> tuple[str, str, str] | None:
    """Return the first id met twice, and where; only ids whose hash is suspect are kept.

    Args:
        files: each with what it is called.
        suspects: hashes that occur more than once.
    """
    seen: dict[str, str] = {}
    for where, path in files if suspects else ():
        for example_id in _ids_in(path):
            if _hash(example_id) not in suspects:
                continue
            if example_id in seen:
                return example_id, seen[example_id], where
            seen[example_id] = where
    return None


def _repeated_within(file: InputFile, example_id: str) -> InputError:
    """Return the error for an id that two rows of a file have."""
    ids = (example_id, example_id.rpartition("#")[0])  # of the row, or of the row it was cut from
    placed = placed_rows(file, untold)
    first, second = islice((row.where for row in placed if row.example.example_id in ids), 2)
    return InputError(
        f"expected each id once, {example_id!r} is also in {first}",
        where=second,
        remedy="make the ids unique, or drop id_column: rows are then named by file and row",
    )


def refuse_duplicates(
    store: ArtifactStore, refs: Sequence[ArtifactRef], known: ids.KnownHashes | None = None
) -> list[npt.NDArray[np.uint64]]:
    """Check that no example id occurs twice in shards; eight bytes an id are held.

    Args:
        store: where the shards are.
        refs: artifacts of ``make_shards``.
        known: hashes of the ids of some of them, by key; the others' ids are read.

    Returns:
        hashes of the ids of each, (n,) uint64.

    Raises:
        InputError: one does; it is named with both files.
    """
    known = known or {}
    hashes = [known[r.key] if r.key in known else _hashes_of(store, r) for r in refs]
    suspects = _repeated(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    files = []
    for ref, its in zip(refs, hashes, strict=True):
        if np.isin(its, np.fromiter(suspects, np.uint64)).any():
            files += _part_files(store, ref)
    found = _first_repeat(files, suspects)
    if found is not None:
        example_id, first, second = found
        raise InputError(
            f"expected each id once, {example_id!r} is also in {first}",
            where=second,
            remedy="make the ids unique, or drop id_column: rows are then named by file and row; "
            "where file names make them, give each source a name",
        )
    return hashes


def _hashes_of(store: ArtifactStore, ref: ArtifactRef) -> npt.NDArray[np.uint64]:
    ids = (id_ for _, path in _part_files(store, ref) for id_ in _ids_in(path))
    return np.fromiter(map(_hash, ids), np.uint64)


def _part_files(store: ArtifactStore, ref: ArtifactRef) -> list[tuple[str, Path]]:
    """Return the part files of shards, each with what the shards are called."""
    folder, facts = store.folder(ref), store.manifest(ref).facts
    label = facts["files"][0] + (" and others" if len(facts["files"]) > 1 else "")
    return [(label, folder / part["name"]) for part in facts["parts"]]


def refuse_barren(store: ArtifactStore, source: SourceConfig, refs: Sequence[ArtifactRef]) -> None:
    """Check that a source gave examples; one of its files may have none.

    Args:
        store: where the shards are.
        source: which.
        refs: artifacts of ``make_shards``, of its files.

    Raises:
        InputError: it gave none, and not for its share alone.
    """
    counts: Counter[str] = Counter()
    blank: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    for ref in refs:
        manifest = store.manifest(ref)
        counts["examples"] += manifest.rows
        counts["rows"] += manifest.facts["rows"]
        for name in (*_SKIPPED, "left_out"):
            counts[name] += manifest.facts.get(f"{name}_rows", 0)
        blank.update(manifest.facts["blank_columns"])
        filtered.update(manifest.facts.get("filtered_reasons", {}))  # older shards have none
    of_share = filtered or counts["unfit"] or counts["damaged"]  # these are looked at behind it
    if not counts["examples"] and (of_share or not counts["left_out"]):
        raise no_rows(source, counts, blank, filtered)


def list_parts(shards: Sequence[ArtifactRef], runtime: Runtime) -> list[Part]:
    """Return the parts of a corpus.

    That no id occurs twice is kept as an artifact, with a hash of each id: nothing is read where
    it is there, and where the corpus has grown, only the ids that are new.

    Raises:
        InputError: an example id occurs twice in it.
    """
    store = ArtifactStore(runtime.root)
    keys = [ref.key for ref in shards]
    family = next(iter(keys), "none")

    def build(folder: Path) -> Built:
        latest = store.latest(ids.STAGE, family)
        known = ids.read_hashes(store, latest) if latest else {}
        hashes = refuse_duplicates(store, shards, known)
        ids.write_hashes(folder, keys, hashes)
        read = sum(key not in known for key in keys)
        return Built(rows=sum(map(len, hashes)), facts={"read": read, "known": len(keys) - read})

    found = store.produce(ids.STAGE, IDS_VERSION, {}, {"shards": keys}, build)
    if not found.reused:
        store.set_latest(family, found)
    return parts_of(store, shards)
