"""Files of rows for tests, and what becomes of them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.errors import InputError
from albat_core.records.examples import Example
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import InputFile, find_files
from albat_core.sources.rows import read_rows

ROWS = [
    {"id": 7, "page": "a", "text": 'Älpha\nbeta, "gamma"', "year": 1999},
    {"id": 8, "page": "a", "text": "one two three four five six seven", "year": 2001},
    {"id": 9, "page": "b", "text": "", "year": 2003},
]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_texts(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"text of {name}")
    return folder


def only(source: SourceConfig) -> InputFile:
    (file,) = find_files(source)
    return file


def rows_of(path: object, **fields: object) -> list[Example]:
    source = SourceConfig(path=str(path), **fields)
    return [example for file in find_files(source) for example in read_rows(file)]


def refused(action: Callable[[], object]) -> str:
    """Return the message of the InputError that an action ends in."""
    with pytest.raises(InputError) as caught:
        action()
    assert caught.value.where
    assert caught.value.remedy
    return str(caught.value)
