"""A look at a source before anything is computed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from albat_core.errors import AlbatError, InputError
from albat_core.pictures import check_picture
from albat_core.records.examples import example_text
from albat_core.records.filtered import by_reason
from albat_core.sources.chats import ANSWERS
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import InputFile, find_problems, left_out
from albat_core.sources.filters import judge
from albat_core.sources.formats.base import HEAD
from albat_core.sources.formats.images import Images
from albat_core.sources.formats.text import Text
from albat_core.sources.rows import PlacedRow, placed_rows, untold

PICTURES_LOOKED_AT = 8
"""Pictures of a file that are opened before anything is computed."""
_ROWS_KEPT = 200  # of a source, to be cut as the run will
_IDS_KEPT = 200_000  # to find ones that repeat
_NAMED = 3  # files or endings
_LETTERS_JUDGED = 500_000  # of a source, by its filters: about a second
_SPLITS = {
    split: re.compile(rf"(^|[-._ 0-9/])({words})([-._ 0-9/]|$)", re.IGNORECASE)
    for split, words in {
        "train": "train|training",
        "validation": "validation|valid|val|dev",
        "test": "test|testing|eval|evaluation",
    }.items()
}
"""What names of files and folders mean to `datasets`."""


@dataclass
class Look:
    """What a look at a source found.

    Args:
        problems: what stops the run.
        rows: some rows that have text, and pictures where there should be.
        counts: of the rows and files that were looked at, and what is the matter with them.
        blank: by column, the rows that are skipped for want of it.
        empty: by column, the rows whose template has it empty.
        filtered: by reason, the rows that filters leave out.
        names: of files without rows, that are one document, or are left out.
        roles: of the messages of chats.
        uris: of its files.
        splits: what the run reads as one and does not tell.
    """

    problems: list[AlbatError] = field(default_factory=list)
    rows: list[PlacedRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    blank: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    roles: dict[str, None] = field(default_factory=dict)
    uris: set[str] = field(default_factory=set)
    splits: dict[str, list[str]] = field(default_factory=dict)

    def untold(self) -> list[str]:
        """Return what is easily overlooked and shows in no run."""
        return _named(self.splits)

    def notes(self) -> list[str]:
        """Return what the run would do with rows and files that is easily overlooked."""
        c, said = self.counts, []
        looked = f"{c['rows']:,} rows looked at"
        if c["unseen"]:
            looked += f" (the first {HEAD} of a file, fewer where they hold pictures)"
            said.append(f"what lies behind the {looked} shows in the run")
        if c["null"]:
            said.append(f"of {looked}, {c['null']} skipped: {_by_column(self.blank)}")
        if c["uncaptioned"]:
            said.append(f"of {looked}, {c['uncaptioned']} skipped: pictures without a caption")
        if c["damaged"]:
            said.append(f"of {looked}, {c['damaged']} skipped: their pictures cannot be read")
        if self.filtered:
            said.append(
                f"of {c['judged']} rows that filters looked at, {self.filtered.total()} left out: "
                f"{by_reason(self.filtered)}"
            )
        if self.empty:
            said.append(f"of {looked}, some have an empty field: {_by_column(self.empty)}")
        if c["printed"]:
            said.append(f"of {looked}, {c['printed']} have a number as text")
        if [*self.roles] == [ANSWERS]:
            said.append(f"chats have turns of role {ANSWERS!r} alone: no question is read")
        return said + _named(self.names)


def _named(those: Mapping[str, list[str]]) -> list[str]:
    return [f"{what}: {len(names)} ({_some(names)})" for what, names in those.items()]


def _by_column(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} is null or blank in {n}" for name, n in counts.items())


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def null_row(lacking: str, row: PlacedRow, config: SourceConfig) -> InputError:
    """Return the error for a row without text, or without its picture or caption."""
    if lacking == "uncaptioned":
        expected = "expected a caption, the picture's is null or blank"
    elif config.image_column and row.picture is None:
        expected = "expected a picture, the row has none"
    else:
        expected = "expected text, the row's is null or blank"
    if row.blank:
        expected += f" (column {', '.join(map(repr, row.blank))})"
    return InputError(expected, where=row.where, remedy="fill it, or set on_null to skip")


def no_rows(
    source: SourceConfig,
    counts: Mapping[str, int],
    blank: Mapping[str, int],
    filtered: Mapping[str, int],
) -> InputError:
    """Return the error for a source of which no row can be used.

    Args:
        source: which.
        counts: ``rows`` and, of these, ``null``, ``uncaptioned``, ``damaged``, ``unfit``, and
            those ``left_out`` of its share.
        blank: by column, the rows that are skipped for want of it.
        filtered: by reason, the rows that its filters leave out.
    """
    where, rows = ", ".join(source.paths), counts["rows"]
    if rows and counts["uncaptioned"] == rows:
        return InputError(
            f"expected captions, none of the {rows} pictures has one",
            where=where,
            remedy="write each in a .txt of the picture's name beside it; or all in a "
            "metadata.jsonl beside them, with file_name and text; or give one for all, as in "
            '`template: "a photo of {token} dog"` with `token: sks`',
        )
    reasons = {
        "null": f"null or blank ({', '.join(f'{c!r} in {n}' for c, n in blank.items())})",
        "uncaptioned": "without caption",
        "damaged": "damaged",
        "unfit": "with no answer to learn, or no room for one",
        "left_out": "not in its share",
    }
    said = [f"{counts[why]} of them {reason}" for why, reason in reasons.items() if counts[why]]
    expected, remedy = "rows with text", "check that path and columns are the right ones"
    if counts["unfit"] > rows / 2:
        expected = "rows with an answer, and room for it"
        remedy = "raise backbone.max_length, or look whether prompts are followed by answers"
    if filtered:
        said.append(f"{sum(filtered.values())} of them left out by filters: {by_reason(filtered)}")
        expected = "rows that its filters keep"
        remedy = "take filters out, or give them parameters that suit such rows, as in "
        remedy += "`{name: gopher_quality, min_doc_words: 5}`"
    return InputError(
        f"expected {expected}, got {rows} rows" + "".join(f", {each}" for each in said),
        where=where,
        remedy=remedy,
    )


def look_at(source: SourceConfig, seen: dict[str, str] | None = None) -> Look:
    """Return what is found in a source, from a look at the head of each file.

    Args:
        source: which.
        seen: ids met so far, each with its place; filled. None: of this source alone.
    """
    files, problems = find_problems(source)
    look = Look(problems, uris={uri for file in files for uri in file.uris})
    ids: dict[str, str] = {} if seen is None else seen
    for file in files:
        try:
            _look_at_file(file, look, ids)
        except AlbatError as error:
            look.problems.append(error)
    lost = sum(look.counts[why] for why in ("null", "uncaptioned", "damaged"))
    usable = look.counts["rows"] - lost - look.filtered.total()
    if files and not look.problems and not usable and not look.counts["unseen"]:
        look.problems.append(no_rows(source, look.counts, look.blank, look.filtered))
    if usable and look.counts["printed"] == usable:
        look.problems.append(
            InputError(
                f"expected text in column {source.text_column or 'text'!r}, every row has a number",
                where=", ".join(source.paths),
                remedy="name another column, or print it in a template",
            )
        )
    if look.roles and ANSWERS not in look.roles:
        look.problems.append(
            InputError(
                f"expected messages of role {ANSWERS!r}, which are what is learnt, got only "
                f"{', '.join(map(repr, look.roles))}",
                where=", ".join(source.paths),
                remedy=f"call the one who answers {ANSWERS!r}, as chat templates do",
            )
        )
    look.splits = _several_splits(files)
    if not problems and (others := left_out(source, files)):
        look.names[f"files left out, as format is {source.format}"] = others
    return look


def _several_splits(files: Sequence[InputFile]) -> dict[str, list[str]]:
    """Return the files of each split, where a source has more than one and reads all alike."""
    found: dict[str, list[str]] = {}
    for name in (name for file in files for name in file.names):
        split = next((split for split, said in _SPLITS.items() if said.search(name)), None)
        if split:
            found.setdefault(split, []).append(name)
    if len(found) < 2:
        return {}
    said = "files of the split {}, read as one with those of others"
    return {said.format(split): names for split, names in found.items()}


def check_source(source: SourceConfig) -> list[AlbatError]:
    """Return every problem found in a source, from a look at the head of each file."""
    return look_at(source).problems


def _look_at_file(file: InputFile, look: Look, ids: dict[str, str]) -> None:
    """Add what the head of a file shows."""
    config, opened, rows = file.config, 0, 0
    counts, left_out_for = look.counts, judge(config.filters)
    inside = config.image_column and file.format != Images.name  # rows hold whole pictures
    many = file.format == Images.name and counts["rows"] >= HEAD  # each caption is a file
    head = PICTURES_LOOKED_AT if inside or many else HEAD
    for row in islice(placed_rows(file, untold), head):
        rows += 1
        counts["rows"] += 1
        _refuse_repeated(row, config, ids)
        if lacking := row.lacks(config):
            if config.on_null == "refuse":
                raise null_row(lacking, row, config)
            counts[lacking] += 1
            look.blank.update(row.blank)
            continue
        text = example_text(row.example) if config.filters else ""
        if config.filters and counts["letters"] + len(text) <= _LETTERS_JUDGED:
            counts["judged"] += 1
            counts["letters"] += len(text)
            if reason := left_out_for(text):
                look.filtered[reason] += 1
                continue
        look.empty.update(row.blank)
        look.roles |= dict.fromkeys(each["role"] for each in row.example.messages or ())
        if row.picture is not None and opened < PICTURES_LOOKED_AT:
            opened += 1
            try:
                check_picture(row.whole().image or b"", row.place)
            except InputError:
                if config.on_damaged == "refuse":
                    raise
                counts["damaged"] += 1
                continue
        counts["printed"] += row.printed
        if len(look.rows) < _ROWS_KEPT:
            look.rows.append(row)
    counts["unseen"] += rows == head
    whole = file.format == Text.name and not config.delimiter
    if not rows:
        look.names.setdefault("files without rows", []).extend(file.names)
    elif whole:
        what = "files that are one document each, unless delimiter says what stands between them"
        look.names.setdefault(what, []).extend(file.names)


def _refuse_repeated(row: PlacedRow, config: SourceConfig, ids: dict[str, str]) -> None:
    """Raise where another row has the id; files of one source often count from 0 each."""
    known = ids.get(row.example.example_id)
    if known is not None and known != row.where:
        raise InputError(
            f"expected each id once, {row.example.example_id!r} is also in {known}",
            where=row.where,
            remedy="make the ids unique, or drop id_column: rows are then named by file and row"
            if config.id_column
            else "give each source a name: it begins the ids that are made of file names",
        )
    if len(ids) < _IDS_KEPT:
        ids[row.example.example_id] = row.where
