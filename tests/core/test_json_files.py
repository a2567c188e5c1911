"""`.json` files: arrays of objects, read as the `datasets` library reads them, and lines."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from albat_core.sources.formats import FORMATS
from tests.core.row_files import refused, rows_of

ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a tree.", "input": "", "output": "Oak"},
    {"instruction": "Name a bird.", "input": "of the sea", "output": "Gull", "extra": 1},
    {"instruction": "Ümlaut?", "output": "Ja"},
]
WRITTEN = {
    "one line": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "a blank line above": "\n\n" + json.dumps(ROWS, indent=1),
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "an indented object": json.dumps(ROWS[0], indent=2),
    "an object": json.dumps(ROWS[1]),
    "texts": json.dumps(["a", "b"], indent=1),
    "a list in a row": json.dumps({"data": [{"text": "a"}]}),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_rows_are_those_of_datasets(written: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "rows.json"
    path.write_text(WRITTEN[written], encoding="utf-8")
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    columns = dict.fromkeys(loaded.column_names, "")
    with path.open("rb") as file:
        got = list(FORMATS["json"].read(file, str(path), columns, lambda _: None))
    assert got == loaded.to_list()


def test_an_array_is_read_compressed_and_after_a_byte_order_mark(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode()
    files = {"a.json": raw, "a.json.gz": gzip.compress(raw), "a.JSON.bz2": bz2.compress(raw)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        got = rows_of(tmp_path / name, text_column="output")
        assert [(row.example_id, row.source, row.text) for row in got] == [
            (f"{name}:{n}", "a", row["output"]) for n, row in enumerate(ROWS)
        ]


def test_chats_of_an_array_keep_the_keys_that_each_message_has(tmp_path: Path) -> None:
    path = tmp_path / "chats.json"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    path.write_text(json.dumps([{"messages": turns}, {"messages": turns}]))
    assert [row.messages for row in rows_of(path, messages_column="messages")] == [tuple(turns)] * 2
    path.write_text(json.dumps({"messages": turns}))  # a row, not a list of rows
    assert [row.messages for row in rows_of(path, messages_column="messages")] == [tuple(turns)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": [{"text": "a"}], "version": 1}', "one object whose 'data' is such an array"),
        ('{"data": [\n{"text": "a"}]}', "write what stands below 'data' as the file"),
        ('{"img/1": {"text": "a"},\n "img/2": {"text": "b"}}', "2 objects by name ('img/1', ...)"),
        ('{"text": {"0": "a"}, "id": {"0": "b"}}', 'orient="records"'),
        ('[{"text": "a"}, 7]', "element 1 is a JSON int"),
        ('[{"text": "a"},\n', "no JSON"),
        ('[{"text": "a"}]\n[{"text": "b"}]', "not one array"),
        ('{"text": "a"}\n[]', "line 2 is a JSON list"),
        ('[{"body": "a"}]', "'body'"),
    ],
)
def test_what_is_no_table_is_told_what_it_is(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    fields = {"template": "{text} {id}"} if "id" in content else {}
    assert said in refused(lambda: rows_of(path, **fields))


def test_an_array_with_the_ending_of_lines_is_told_the_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([{"text": "a"}], indent=1))
    assert "set format to json" in refused(lambda: rows_of(path))
    assert [row.text for row in rows_of(path, format="json")] == ["a"]


def test_a_file_of_nothing_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for content in ("", "\n \n", "[]"):
        path.write_text(content)
        assert rows_of(path) == []
