"""Columns that lie in others: outputs of datatrove and of NeMo Curator, read as they are."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.records.examples import Example
from tests.core.row_files import refused, rows_of, write_jsonl, write_parquet

ROWS = [
    {
        "text": f"text {n}",
        "id": f"<urn:uuid:{n}>",
        "metadata": {"url": f"https://a.example/{n // 2}", "dump": "CC-2024", "score": float(n)},
    }
    for n in range(5)
]
COLUMNS = {
    "id_column": "id",
    "document_column": "metadata.url",
    "source_column": "metadata.dump",
    "template": "{metadata.url} {metadata.score}\n{text}",
}


def expected(score: str) -> list[Example]:
    return [
        Example(
            f"<urn:uuid:{n}>",
            f"https://a.example/{n // 2}",
            "CC-2024",
            text=f"https://a.example/{n // 2} {score.format(n)}\ntext {n}",
        )
        for n in range(5)
    ]


@pytest.mark.parametrize("expand", [False, True], ids=["nested", "expanded"])
@pytest.mark.parametrize("writer", ["JsonlWriter", "ParquetWriter"])
def test_what_datatrove_s_writers_write_is_read_as_it_is(
    tmp_path: Path, writer: str, expand: bool
) -> None:
    writers = pytest.importorskip("datatrove.pipeline.writers")
    data = pytest.importorskip("datatrove.data")
    documents = (data.Document(r["text"], r["id"], metadata=dict(r["metadata"])) for r in ROWS)
    step = getattr(writers, writer)(str(tmp_path / "out"), expand_metadata=expand)
    assert len([*step.run(documents, rank=3)]) == len(ROWS)
    (file,) = (tmp_path / "out").iterdir()
    name = {"JsonlWriter": "00003.jsonl.gz", "ParquetWriter": "000_00003.parquet"}[writer]
    assert file.name == name
    columns = COLUMNS
    if expand:
        columns = {name: value.replace("metadata.", "") for name, value in COLUMNS.items()}
    # of whole floats, a column of Parquet is printed as whole numbers
    found = rows_of(tmp_path / "out", **columns)
    assert found == expected("{0}.0" if writer == "JsonlWriter" else "{0}")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_nemo_curator_writes_is_read_as_it_is(tmp_path: Path, form: str) -> None:
    # its JsonlWriter and ParquetWriter are pandas.DataFrame.to_json and to_parquet, a shard a task
    frame = pd.DataFrame(
        {
            "text": [f"text {n}" for n in range(4)],
            "id": [f"doc_id-{n:010d}" for n in range(4)],
            "file_name": ["a.jsonl"] * 4,
            "metadata": [{"url": f"u{n}"} for n in range(4)],
        }
    )
    (tmp_path / "out").mkdir()
    for part in range(2):
        path, rows = tmp_path / "out" / f"{part:012x}.{form}", frame[part * 2 : part * 2 + 2]
        if form == "jsonl":
            rows.to_json(path, lines=True, orient="records", force_ascii=False)
        else:
            rows.to_parquet(path, index=None)
    found = rows_of(
        tmp_path / "out", id_column="id", document_column="metadata.url", source_column="file_name"
    )
    assert [e.text for e in found] == [f"text {n}" for n in range(4)]
    assert [e.example_id for e in found] == [f"doc_id-{n:010d}" for n in range(4)]
    assert {(e.document, e.source) for e in found} == {(f"u{n}", "a.jsonl") for n in range(4)}


def test_a_name_with_a_dot_is_a_column_of_that_name_first(tmp_path: Path) -> None:
    rows = [{"text": "t", "a.b": "whole", "a": {"b": "inner", "c.d": "deep", "e": {"f": "deeper"}}}]
    for path in (
        write_jsonl(tmp_path / "x.jsonl", rows),
        write_parquet(tmp_path / "x.parquet", rows),
    ):
        (found,) = rows_of(path, template="{a.b} {a.c.d} {a.e.f}")
        assert found.text == "whole deep deeper"


def test_arrow_files_have_nested_columns_too(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    assert rows_of(tmp_path / "x.arrow", **COLUMNS) == expected("{0}")


def test_a_row_in_which_it_is_missing_has_null(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[1], "metadata": None}, {**ROWS[2], "metadata": {"dump": "CC"}}]
    lines = write_jsonl(tmp_path / "x.jsonl", [*rows, {"text": "t", "id": "x"}])
    table = write_parquet(tmp_path / "x.parquet", rows)
    for path, count in ((lines, 4), (table, 3)):
        found = rows_of(path, document_column="metadata.url", id_column="id")
        documents = [ROWS[0]["metadata"]["url"], *(e.example_id for e in found[1:])]
        assert [e.document for e in found] == documents
        assert len(found) == count


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet", "x.json"])
def test_a_nested_column_that_is_missing_is_told_with_those_there_are(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name.endswith("gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))
    elif name.endswith("json"):
        path.write_text(json.dumps(ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    told = refused(lambda: rows_of(path, id_column="id", document_column="metadata.ulr"))
    assert "document_column names column 'metadata.ulr', which the file does not have" in told
    assert "'metadata.url', 'metadata.dump'" in told
    assert "did you mean 'metadata.url'?" in told
    assert "'text.url'" in refused(lambda: rows_of(path, document_column="text.url"))
