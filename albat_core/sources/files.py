"""The files of a source: found, named for ids, and put together into what is read as one."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from albat_core.errors import AlbatError, InputError
from albat_core.progress import track_long
from albat_core.redaction import redacted
from albat_core.sources.config import SourceConfig
from albat_core.sources.contents import contents_of, state_of, tells_by_tag
from albat_core.sources.endings import formats_of
from albat_core.sources.formats import COMPRESSED, FORMATS, base_name, format_of
from albat_core.sources.formats.arrow import Arrow
from albat_core.sources.formats.images import Images
from albat_core.sources.formats.text import Text
from albat_core.sources.hub import data_files
from albat_core.sources.picture_folders import Beside, row_of, without_descriptions
from albat_core.sources.picture_paths import paths_fingerprint
from albat_core.sources.readers import readable, stream_rows
from albat_core.store import missing, storage
from albat_core.store.patterns import above_glob, braced, is_pattern
from albat_core.store.stage import canonical_json

_SMALL_FOLDER = {Text.name: 64}  # up to so many files are entries of their own
_GROUP_ENDS = 64  # one file in so many ends a group
_GROUP_LIMIT = 512  # files
_MANY = 256  # files that take a while to look at
_USUAL_RATIO = 4  # text takes about so much more space than its compressed file
_LITTER = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|Thumbs\.db|ehthumbs\.db|desktop\.ini)$", re.I)
"""What file managers leave in folders."""
_SIDECARS = ("state.json", "dataset_info.json", "dataset_dict.json")


class InputFile(BaseModel):
    """What is read as one: a file of rows, or a group of text files or of pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uris: tuple[str, ...]
    names: tuple[str, ...]
    """Each file's name in ids: its path below the source's, from `name` on if that is set."""
    fingerprint: str
    """Digest of format, label, names and contents, captions and pictures that are named by their
    path included: what decides the rows beside `config`."""
    config: SourceConfig
    """The source, of its paths only the one that this comes from."""
    format: str
    label: str
    """Source of its rows where no column gives one."""
    states: tuple[str, ...] = ()
    """What changes when one of the files is written to, before its content was looked at."""
    holds_pictures: bool = False
    """Whether the first pictures of a table are in it: files that others named are in no
    fingerprint."""
    beside: tuple[Beside, ...] = ()
    """What describes each picture of a folder."""


@dataclass(frozen=True)
class Found:
    """A file of a source, before its content is looked at."""

    uri: str
    name: str
    format: str
    label: str
    path: str
    beside: Beside = field(default_factory=Beside)


def find_files(source: SourceConfig) -> list[InputFile]:
    """Return what there is to read, in order of the source's paths and then by name.

    Text files and pictures of a large folder are read in groups whose limits their names decide,
    so that a new file changes one group.

    Raises:
        InputError: a path is missing, holds nothing to read or files of unknown format.
    """
    found = distinct([file for path in source.paths for file in locate(path, source)])
    states = {file.uri: state_of(file.uri) for file in found}
    prints = _fingerprints(found)
    states |= {uri: prints[uri] for uri in filter(tells_by_tag, states)}
    named = {file.uri: _pictures_named(file, source) for file in found}
    return [
        as_input(
            group,
            source,
            _digest(group, source, prints, named),
            [states[file.uri] for file in group],
            holds_pictures=_names_pictures(group[0], source) and named[group[0].uri] is None,
        )
        for group in grouped(found)
    ]


def as_input(
    group: Sequence[Found],
    source: SourceConfig,
    fingerprint: str = "",
    states: Sequence[str] = (),
    *,
    holds_pictures: bool = False,
) -> InputFile:
    """Return files of one format and label as one thing to read."""
    prefix = f"{source.name}/" if source.name else ""
    form = group[0].format
    changes: dict[str, str] = {"path": group[0].path}  # a list may be long
    if form == Images.name or (FORMATS[form].pictures and not source.image_column):
        changes["image_column"] = "image"
    return InputFile(
        uris=tuple(file.uri for file in group),
        names=tuple(prefix + file.name for file in group),
        fingerprint=fingerprint,
        config=source.model_copy(update=changes),
        format=form,
        label=group[0].label,
        states=tuple(states),
        holds_pictures=holds_pictures,
        beside=tuple(file.beside for file in group) if form == Images.name else (),
    )


def _fingerprints(found: Sequence[Found]) -> dict[str, str]:
    """Return the fingerprint of each file and caption by its address."""
    captions = [file.beside.caption for file in found if file.beside.caption]
    uris = [file.uri for file in found] + captions
    with track_long("look at input files", len(uris), "files", _MANY) as advance:
        return contents_of(uris, advance)


def _digest(
    group: Sequence[Found],
    source: SourceConfig,
    prints: dict[str, str],
    named: dict[str, str | None],
) -> str:
    contents = []
    for file in group:
        content = [file.name, prints[file.uri]]
        if file.format == Images.name:
            content += [prints.get(file.beside.caption or "", ""), row_of(file.beside)]
        elif paths := named[file.uri]:
            content.append(paths)
        contents.append(content)
    identity = canonical_json([group[0].format, group[0].label, contents])
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def _pictures_named(file: Found, source: SourceConfig) -> str | None:
    """Return what changes with the pictures that a table names by their paths, if it does."""
    column = source.image_column
    if column is None or not _names_pictures(file, source):
        return None
    wanted = {column: "image_column"}
    rows = stream_rows(file.uri, file.format, wanted, lambda _: None)
    return paths_fingerprint((row[column] for row in rows), file.uri, source)


def _names_pictures(file: Found, source: SourceConfig) -> bool:
    """Tell whether a file may name pictures by their paths."""
    return source.image_column is not None and not FORMATS[file.format].pictures


def locate(path: str, source: SourceConfig) -> list[Found]:
    """Return the files that one path of a source names, by name.

    Raises:
        InputError: it is missing, holds nothing to read or files of unknown format.
    """
    if source.on_hub:
        return _of_dataset(path, source)
    place = storage.filesystem(path)[1]
    root = _root(path)
    there = storage.exists(root)
    if not there and not is_pattern(root):
        raise _missing(root)
    listed = storage.list_files(root)
    if not there:
        _refuse_unlisted(braced(root), set(listed))
    uris = [u for u in listed if not _LITTER.search(u)]
    if not uris:
        raise InputError(
            "expected files, found none",
            where=root,
            remedy="check the path; names that begin with . or _ are passed over",
        )
    missing.refuse_undecoded(uris)
    alone = there and uris == [root]
    base = place.rstrip("/") if there else above_glob(place)
    if alone:
        named = {storage.without_query(redacted(root)).rpartition("/")[2]: root}
    else:
        named = {_plain(uri).removeprefix(base).lstrip("/"): uri for uri in uris}
        named = _without_sidecars(named, source, root)
    whole_folder = there and not alone
    named, beside = without_descriptions(named, source, uris if whole_folder else None)
    formats = formats_of(named, source, root, whole_folder=whole_folder)
    folder = base.rpartition("/")[2]
    return [
        Found(
            uri=named[name],
            name=name,
            format=form,
            label=source.name
            or (folder if (FORMATS[form].one_row or form == Arrow.name) and not alone else "")
            or base_name(name)[0],
            path=path,
            beside=beside.get(name, Beside()),
        )
        for name, form in formats.items()
    ]


def _refuse_unlisted(patterns: Iterable[str], listed: Collection[str]) -> None:
    """Refuse a file that is written out and was not found: it is not left out without a word."""
    for each in patterns:
        if is_pattern(each) or each in listed:
            continue
        if not storage.exists(each):
            raise _missing(each)
        raise InputError(
            "expected files, got a folder", where=each, remedy=f"name its files: {each}/*"
        )


def _of_dataset(path: str, source: SourceConfig) -> list[Found]:
    """Return the files of a dataset's split."""
    named = data_files(path, source.subset, source.split)
    label = source.name or path.partition("@")[0].rstrip("/").rpartition("/")[2]
    return [
        Found(uri=named[name], name=name, format=form, label=label, path=path)
        for name, form in formats_of(named, source, path, whole_folder=False).items()
    ]


def _plain(uri: str) -> str:
    return uri.split("://", 1)[-1]


def _missing(root: str) -> InputError:
    remedy = "check the path"
    if not storage.is_remote(root):
        path = Path(root)
        while not path.parent.is_dir():
            path = path.parent
        near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
        remedy = (
            f"did you mean {path.parent / near[0]}?"
            if near
            else f"{path.parent} is there, but has no {path.name!r}"
        )
        if not Path(root).suffix:
            remedy += "; if owner/name of the Hub is meant, give its split"
    return InputError("expected a file or a folder, found none", where=root, remedy=remedy)


def _without_sidecars(named: dict[str, str], source: SourceConfig, root: str) -> dict[str, str]:
    """Return the files without those that describe a dataset that `datasets` saved."""
    if source.format not in ("auto", Arrow.name) or not any(n.endswith(".arrow") for n in named):
        return named
    splits = sorted({name.split("/")[0] for name in named if "/" in name})
    if "dataset_dict.json" in named and splits:
        raise InputError(
            f"expected one dataset, found a DatasetDict of {', '.join(splits)}",
            where=root,
            remedy=f"name the split to read, as in {storage.join(root, splits[0])}",
        )
    if "state.json" in named:
        with readable(named["state.json"]):
            state = storage.read_bytes(named["state.json"])
        try:
            listed = [entry["filename"] for entry in json.loads(state)["_data_files"]]
            return {name: named[name] for name in sorted(listed)}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"expected a dataset saved on disk, it is incomplete ({error})",
                where=named["state.json"],
                remedy="save it again with save_to_disk",
            ) from error
    return {
        name: uri
        for name, uri in named.items()
        if name.rpartition("/")[2] not in _SIDECARS
        and not name.rpartition("/")[2].startswith("cache-")  # results that `datasets` keeps
    }


def distinct(found: Iterable[Found]) -> list[Found]:
    """Return each file once; equal names get the folders above them until they differ."""
    files = list({file.uri: file for file in found}.values())
    while clashes := {n for n, count in Counter(f.name for f in files).items() if count > 1}:
        files = [replace(f, name=_longer(f)) if f.name in clashes else f for f in files]
    return files


def _longer(file: Found) -> str:
    """Return the file's name with one more of the folders above it."""
    address = redacted(file.uri)
    if file.name == address or not address.endswith(file.name):  # they differ in secrets, queries
        return f"{hashlib.blake2b(file.uri.encode(), digest_size=4).hexdigest()}/{address}"
    above = _plain(address).removesuffix(file.name).strip("/")
    return f"{above.rpartition('/')[2]}/{file.name}" if above else address


def grouped(found: Iterable[Found]) -> Iterator[list[Found]]:
    """Yield what is read as one: tables by themselves, texts and pictures of a path in groups."""
    single: dict[tuple[str, str, str], list[Found]] = {}
    for file in found:
        if FORMATS[file.format].one_row:
            single.setdefault((file.path, file.label, file.format), []).append(file)
        else:
            yield [file]
    for (_, _, form), files in single.items():
        group: list[Found] = []
        for file in sorted(files, key=lambda f: f.name):
            group.append(file)
            ends = hashlib.blake2b(file.name.encode(), digest_size=8).digest()
            if (
                len(files) <= _SMALL_FOLDER.get(form, 0)
                or int.from_bytes(ends) % _GROUP_ENDS == 0
                or len(group) == _GROUP_LIMIT
            ):
                yield group
                group = []
        if group:
            yield group


def left_out(source: SourceConfig, files: Iterable[InputFile]) -> list[str]:
    """Return names of files in a source's folders that are not of the format that it sets."""
    if source.on_hub or source.format in ("auto", Arrow.name):
        return []
    used = {uri for file in files for uri in file.uris}
    beside = [one for file in files for one in file.beside]
    used |= {uri for one in beside for uri in (one.caption, one.table) if uri}
    listed = {uri for path in source.paths for uri in storage.list_files(_root(path))}
    others = [uri for uri in sorted(listed - used) if not _LITTER.search(uri)]
    if source.image_column:  # a table names them
        others = [uri for uri in others if format_of(uri) != Images.name]
    return [uri.rpartition("/")[2] for uri in others]


def _root(path: str) -> str:
    return path if storage.is_remote(path) else storage.filesystem(path)[1]


def find_problems(source: SourceConfig) -> tuple[list[InputFile], list[AlbatError]]:
    """Return what can be found, without fingerprints, and every error on the way."""
    found: list[Found] = []
    problems: list[AlbatError] = []
    for path in source.paths:
        try:
            found += locate(path, source)
        except AlbatError as error:
            problems.append(error)
    return [as_input(group, source) for group in grouped(distinct(found))], problems


def amount_of(file: InputFile) -> tuple[int, str]:
    """Return how much there is to read, and in which unit its readers tell how far they are."""
    if file.format == Images.name:
        return len(file.uris), "pictures"
    packed = (uri.lower().endswith(COMPRESSED) for uri in file.uris)
    sizes = (
        storage.size(uri) * (_USUAL_RATIO if its else 1)
        for uri, its in zip(file.uris, packed, strict=True)
    )
    return sum(sizes), "bytes"
