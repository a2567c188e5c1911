"""Rows as pandas, spreadsheets and exports write them; pandas says what is null and what is cut."""

import io
import json
import subprocess
import unicodedata
import uuid
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.sources.rows import placed_rows, untold
from tests.core.row_files import refused, rows_of, write_jsonl

NAN = float("nan")
TABLE = pd.DataFrame(
    {"q": ["a", "b", "c"], "a": ["x", NAN, "z"], "page": [7.0, NAN, 8.0], "n": [1.5, NAN, NAN]}
)


def written(folder: Path, form: str) -> Path:
    """Write the table as pandas does."""
    path = folder / f"t.{form}"
    if form == "jsonl":  # json.dumps, which pandas' users call, writes NaN
        return write_jsonl(path, TABLE.to_dict("records"))
    TABLE.to_parquet(path) if form == "parquet" else TABLE.to_csv(path, index=False, na_rep="nan")
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_nan_is_null(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form)
    missing = TABLE["a"].isna()
    fields = {"prompt_template": "Q: {q} A: ", "answer_template": "{a}", "document_column": "page"}
    rows = rows_of(path, **fields)
    assert [row.text is None for row in rows] == list(missing)
    assert [row.document for row in rows] == ["7", f"t.{form}:1", "8"]
    assert [row.text for row in rows_of(path, text_column="a")] == ["x", None, "z"]
    assert "got null" in refused(lambda: rows_of(path, text_column="q", id_column="n"))
    assert "nan" not in " ".join(row.text for row in rows_of(path, template="{q}{a}{n}"))


def saved(table: pa.Table, path: Path) -> Path:
    """Write a table as the format that its path's ending says."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        with pa.ipc.new_file(path.with_suffix(".arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return path.with_suffix(".arrow")
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.file"])
def test_whole_numbers_that_pandas_made_floats_are_printed_whole(tmp_path: Path, name: str) -> None:
    years = pd.DataFrame({"year": [1999, 2001, 7]})  # what pandas prints of them is what is meant
    gap = pd.DataFrame({"year": [1999, 2001, 7, None, np.nan]})
    assert gap["year"].dtype == np.float64
    texts = {}
    for kind, frame in {"whole": years, "gap": gap}.items():
        folder = tmp_path / kind
        folder.mkdir()
        path = saved(pa.Table.from_pandas(frame), folder / name)
        texts[kind] = [row.text for row in rows_of(path, template="in {year}")]
    assert texts["whole"] == [f"in {year}" for year in years["year"]]
    assert texts["gap"] == [*texts["whole"], None, None]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.file"])
@pytest.mark.parametrize("values", [[2.0, 1.5, None], [2.0, 3.0, 1e16], [2.0, np.inf, 1.0]])
def test_floats_beside_which_one_is_no_whole_number_stay_floats(
    tmp_path: Path, name: str, values: list[float | None]
) -> None:
    path = saved(pa.table({"price": pa.array(values, pa.float64())}), tmp_path / name)
    got = [row.text for row in rows_of(path, template="{price}")]
    assert got == [None if value is None else str(value) for value in values]


def test_text_formats_print_numbers_as_they_are_written(tmp_path: Path) -> None:
    rows = [{"version": 3.0}, {"version": 2.0}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert [row.text for row in rows_of(path, template="{version}")] == ["3.0", "2.0"]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_classes_are_printed_by_their_names(tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    feature = datasets.ClassLabel(names=["oak", "gull"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": feature,
            "n": datasets.Value("int64"),
            "inner": {"label": feature},
        }
    )
    labels = [1, 0, None, -1]
    columns = {"text": ["a", "b", "c", "d"], "label": labels, "n": [5, 6, 7, 8]}
    columns["inner"] = [{"label": label} for label in labels]
    made = datasets.Dataset.from_dict(columns, features=features)
    path = tmp_path / ("a.parquet" if form == "parquet" else "a")
    made.to_parquet(path) if form == "parquet" else made.save_to_disk(path)
    rows = rows_of(path, prompt_template="{text}{n} ", answer_template="{label}")
    expected = [f"a5 {feature.int2str(1)}", f"b6 {feature.int2str(0)}", None, None]
    assert [row.text for row in rows] == expected
    rows = rows_of(path, prompt_template="{text}{n} ", answer_template="{inner.label}")
    assert [row.text for row in rows] == expected
    assert [row.document for row in rows_of(path, document_column="n")] == ["5", "6", "7", "8"]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_values_of_several_types_are_what_they_say(tmp_path: Path, form: str) -> None:
    """`datasets` stores them as JSON."""
    datasets = pytest.importorskip("datasets")
    call = {"type": "function", "function": {"name": "w", "arguments": {"n": 3}}}
    chats = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "tool_calls": [call]},
        ],
    ]
    columns = {
        "answer": [3, 'He said "hi"\nthen left', None],
        "chat": [*chats, None],
        "deep": [{"inner": value} for value in ("x", 1, None)],
    }
    json_ = datasets.Json()
    features = {"answer": json_, "chat": datasets.List(json_), "deep": {"inner": json_}}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    path = tmp_path / ("a.parquet" if form == "parquet" else "a")
    made.to_parquet(path) if form == "parquet" else made.save_to_disk(path)
    rows = rows_of(path, template="{answer}")
    assert [row.text for row in rows] == ["3", columns["answer"][1], None]
    said = [row.messages for row in rows_of(path, messages_column="chat")]
    assert said == [*map(tuple, chats), None]
    assert rows_of(path, template="{deep.inner}")[0].text == "x"


def test_json_that_is_none_is_told_with_its_column(tmp_path: Path) -> None:
    broken = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "{no"]))
    path = saved(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert "expected JSON in column 'text', as its type says" in refused(lambda: rows_of(path))


def test_ids_that_are_uuids_are_their_text(tmp_path: Path) -> None:
    one = uuid.UUID(int=5)
    table = pa.table({"text": ["a"], "key": pa.array([one.bytes], pa.uuid())})
    path = saved(table, tmp_path / "a.arrow")
    assert rows_of(path, id_column="key")[0].example_id == str(one)


def test_what_cannot_be_seen_is_blank(tmp_path: Path) -> None:
    # categories of Unicode's: Zs, Cf, Cc; a joined emoji and a braille blank are written on purpose
    unseen = ["\xa0", "\u200b", "\ufeff", "\u200e\u200f ", "\xad\u2060", "\x1c", "\u3000\u2029"]
    seen = ["\u200bx", "\N{MAN}\u200d\N{WOMAN}", "\u2800", "\u0627\u200c"]
    rows = [{"text": text} for text in unseen + seen]
    got = [row.text for row in rows_of(write_jsonl(tmp_path / "a.jsonl", rows))]
    assert got == [None] * len(unseen) + seen
    said = [{"role": "assistant", "content": text} for text in unseen + seen]
    path = write_jsonl(tmp_path / "b.jsonl", [{"m": [each]} for each in said])
    kept = [row.messages for row in rows_of(path, messages_column="m")]
    assert kept == [None] * len(unseen) + [(each,) for each in said[len(unseen) :]]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_told_with_and_without_its_mark(tmp_path: Path, coding: str) -> None:
    for name in ("a.txt", "a.jsonl", "a.csv"):
        path = tmp_path / name
        path.write_bytes("a dog, and another\n".encode(coding))
        said = refused(lambda: rows_of(path))  # noqa: B023
        assert "found UTF-16" in said and "save it as UTF-8" in said
    (tmp_path / "b.txt").write_bytes(b"ab\0c")
    assert "NUL byte at byte 2" in refused(lambda: rows_of(tmp_path / "b.txt"))


def test_an_empty_optional_field_is_empty(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Do.", "input": None, "output": "Done."},
        {"instruction": "Do.", "input": "It", "output": "Done."},
        {"instruction": "Do.", "input": "It", "output": None},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    fields = {"prompt_template": "{instruction}\n{input}\n", "answer_template": "{output}"}
    assert [row.text for row in rows_of(path, **fields)] == ["Do.\n\nDone.", "Do.\nIt\nDone.", None]
    (file,) = find_files(SourceConfig(path=str(path), **fields))
    assert [row.blank for row in placed_rows(file, untold)] == [("input",), (), ("output",)]


def test_seven_is_one_document_however_it_is_written(tmp_path: Path) -> None:
    rows = [{"text": "a", "page": page} for page in (7, 7.0, "7", "7.0", "7.5", "7a")]
    decimals = pd.DataFrame({"text": ["a"], "page": [Decimal("7.00")]})
    decimals.to_parquet(tmp_path / "d.parquet")
    (row,) = rows_of(tmp_path / "d.parquet", template="{page}", document_column="page")
    assert (row.document, row.text) == ("7", "7.00")
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    documents = [row.document for row in rows_of(path, document_column="page")]
    assert documents == ["7", "7", "7", "7", "7.5", "7a"]


def test_a_name_is_one_document_in_both_spellings_of_its_accents(tmp_path: Path) -> None:
    apart, whole = (unicodedata.normalize(form, "\u00e9t\u00e9.txt") for form in ("NFD", "NFC"))
    rows = [{"text": "a", "page": page} for page in (apart, whole, f" {whole} ", "ete.txt")]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    documents = [row.document for row in rows_of(path, document_column="page")]
    assert documents == [whole, whole, whole, "ete.txt"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("field", ["document_column", "id_column"])
def test_whole_numbers_that_floats_cannot_tell_apart_are_no_names(
    tmp_path: Path, form: str, field: str
) -> None:
    table = pd.DataFrame({"text": ["a", "b", "c"], "page": [2**53 + 1, 2**53, None]})
    assert table["page"][0] == table["page"][1]  # None has made them floats
    path, whole = tmp_path / f"t.{form}", table.astype({"page": "Int64"})
    whole["page"] = pd.array([2**53 + 1, 2**53, 7], "Int64")
    for frame in (table, whole):
        if form == "jsonl":
            write_jsonl(path, json.loads(frame.to_json(orient="records", double_precision=15)))
        elif form == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        if frame is table:
            said = refused(lambda: rows_of(path, **{field: "page"}))
            assert f"{path}:0: expected whole names in {field} 'page'" in said
            assert "others are rounded" in said
    rows = rows_of(path, **{field: "page"})
    assert [row.document for row in rows] == [str(2**53 + 1), str(2**53), "7"]


def test_what_a_spreadsheet_shortened_is_no_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,page\na,1.3449E+18\n")
    assert "others are rounded" in refused(lambda: rows_of(path, document_column="page"))
    path.write_text("text,page\na,1e9\nb,12e34\nc,1.5\nd,1344900117571260417\ne,-\n")
    documents = [row.document for row in rows_of(path, document_column="page")]
    assert documents == ["1e9", "12e34", "1.5", "1344900117571260417", "-"]


def test_a_number_among_texts_is_printed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}, {"text": 12}, {"text": ["b"]}])
    said = refused(lambda: rows_of(path))
    assert "got list" in said
    assert "template" not in said  # which takes no list either
    assert "got list" in refused(lambda: rows_of(path, template="{text}"))
    path = write_jsonl(tmp_path / "s.jsonl", [{"text": "a"}, {"text": 12}])
    assert [row.text for row in rows_of(path)] == ["a", "12"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_table_is_found(tmp_path: Path, delimiter: str) -> None:
    table = pd.DataFrame({"id": ["1", "2"], "text": ["a, b; c", 'say "d" | e'], "n": ["1,5", "2"]})
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False, sep=delimiter)
    as_pandas = pd.read_csv(path, sep=delimiter, dtype=str)
    rows = rows_of(path, template="{id}/{text}/{n}")
    assert [row.text for row in rows] == [f"{r.id}/{r.text}/{r.n}" for r in as_pandas.itertuples()]
    said = refused(lambda: rows_of(path, text_column=f"id{delimiter}text"))
    assert "it has 'id', 'text', 'n'" in said
    path.write_text(f"sep={delimiter}\n{path.read_text()}")
    assert len(rows_of(path)) == 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_line_ends_in_the_first_row_hide_no_delimiter(tmp_path: Path, delimiter: str) -> None:
    table = pd.DataFrame({"te\nxt": ['a "b"\nc,\n\nd', "e"], "n": ["1", "2"]})
    path = tmp_path / "t.csv"
    for changed in (table, table.rename(columns={"te\nxt": "text"})):
        changed.to_csv(path, index=False, sep=delimiter, lineterminator="\r\n")
        first, second = changed.columns
        rows = rows_of(path, template=f"{{{second}}}", text_column=None, document_column=first)
        assert [row.text for row in rows] == ["1", "2"]
        assert [row.document for row in rows] == list(table["te\nxt"])
    path.write_text(f'text{delimiter}n\n5" wide{delimiter}1\n' + f"b{delimiter}2\n" * 3)
    assert [row.text for row in rows_of(path)] == ['5" wide', "b", "b", "b"]


def test_one_column_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = pd.DataFrame({"what; text": ["a", "b; c"]})
    table.to_csv(path, index=False)
    expected = pd.read_csv(io.StringIO(path.read_text()))["what; text"]
    assert [row.text for row in rows_of(path, text_column="what; text")] == list(expected)


def test_text_files_are_cut_at_a_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\r\ntwo\r\n---\r\nthree\n---\n \n---\n")
    rows = rows_of(path, delimiter="\n---\n")
    assert [(row.document, row.text) for row in rows] == [
        ("t.txt:0", "one\ntwo"),
        ("t.txt:1", "three"),
    ]
    assert [row.document for row in rows_of(path)] == ["t.txt"]
    table = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    assert "delimiter is for text files" in refused(lambda: rows_of(table, delimiter="x"))


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "elsewhere" / "deep" / "a.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "corpus" / "b.jsonl", [{"text": "b"}])
    (tmp_path / "corpus" / "more").symlink_to("../elsewhere")
    (tmp_path / "corpus" / "again").symlink_to(tmp_path / "corpus")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    expected = {("b.jsonl:0", "b"), ("more/deep/a.jsonl:0", "a")}
    for path in ("corpus", "corpus/**/*.jsonl"):
        found = {(row.example_id, row.text) for row in rows_of(tmp_path / path)}
        assert found == expected
    assert len(rows_of(tmp_path / "corpus" / "*" / "deep" / "*.jsonl")) == 1


@pytest.mark.parametrize("pattern", ["{a,b}.jsonl", "{a,sub/c}.jsonl", "n{08..11}.jsonl"])
def test_braces_are_a_shells(tmp_path: Path, pattern: str) -> None:
    for name in ("a", "b", "sub/c", "n08", "n9", "n09", "n10", "n11", "n12"):
        write_jsonl(tmp_path / "f[1]" / f"{name}.jsonl", [{"text": name}])
    folder = tmp_path / "f[1]"
    shell = ["bash", "-c", f"printf '%s\\n' {pattern}"]
    said = subprocess.run(shell, check=True, cwd=folder, text=True, capture_output=True)
    names = sorted(name.removesuffix(".jsonl") for name in said.stdout.split())
    escaped = str(tmp_path / "f[[]1]" / pattern)
    assert sorted(row.text for row in rows_of(escaped)) == names


def test_what_file_managers_leave_is_passed_over(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    for name in ("Thumbs.db", ".DS_Store", "._a.jsonl", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    assert len(rows_of(tmp_path)) == len(rows_of(tmp_path / "*")) == 1


def test_two_colons_are_part_of_a_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "part::1.jsonl", [{"text": "a"}])
    assert [row.text for row in rows_of(path)] == ["a"]
    assert len(rows_of(tmp_path / "part::*.jsonl")) == 1


def test_a_file_that_braces_write_out_is_missed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "n08.jsonl", [{"text": "a"}])
    said = refused(lambda: rows_of(tmp_path / "n{08..09}.jsonl"))
    assert f"{tmp_path}/n09.jsonl: expected a file" in said
    assert len(rows_of(tmp_path / "n{08..09}*.jsonl")) == 1
