"""The corpus: what is found, how rows are read, and the shards that come of it."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from albat_core import corpus, progress, storage
from albat_core.artifacts import ArtifactRef, ArtifactStore, Manifest
from albat_core.backbones.base import BackboneConfig
from albat_core.corpus import (
    InputFile,
    ShardConfig,
    SourceConfig,
    check_source,
    find_files,
    make_shards,
    read_rows,
    refuse_duplicates,
)
from albat_core.errors import AlbatError, InputError
from albat_core.records import EXAMPLE_SCHEMA, Example, read_table, table_to_examples
from albat_core.stage import Runtime

ROWS = [
    {"id": 7, "page": "a", "text": 'Älpha\nbeta, "gamma"', "year": 1999},
    {"id": 8, "page": "a", "text": "one two three four five six seven", "year": 2001},
    {"id": 9, "page": "b", "text": "", "year": 2003},
]
MAX_WORDS = 8


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
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


# --- configuration


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_column": "t", "template": "{a}"}, "text_column and template exclude each other"),
        ({"messages_column": "m", "prompt_template": "p", "answer_template": "{a}"}, "exclude"),
        ({"prompt_template": "{q}"}, "prompt_template and answer_template need each other"),
        ({"answer_template": "{q}"}, "prompt_template and answer_template need each other"),
        ({"template": "no columns"}, "names no column"),
        ({"template": "open { brace {a}"}, "write {{ or }}"),
        ({"template": "{a:>3}"}, "a column's name only"),
        ({"template": "{}"}, "a column's name only"),
        ({"share": 0.0}, "share"),
        ({"share": 1.1}, "share"),
        ({"text_column": ""}, "text_column"),
        ({"path": ()}, "path names nothing"),
        ({"path": ("x", " ")}, "path names nothing"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_config_refuses(fields: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("{", r"\{")):
        SourceConfig(**{"path": "x", **fields})


def test_config_tells_all_mistakes_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig(path="", template="plain", text_column="t")
    for said in ("path names nothing", "exclude each other", "names no column"):
        assert said in str(caught.value)


# --- reading the formats


def test_every_table_format_gives_the_same_examples(tmp_path: Path) -> None:
    fields = {"id_column": "id", "document_column": "page", "name": "pages"}
    expected = [
        Example("7", "a", "pages", text=ROWS[0]["text"]),
        Example("8", "a", "pages", text=ROWS[1]["text"]),
        Example("9", "b", "pages", text=None),
    ]
    jsonl = write_jsonl(tmp_path / "r.jsonl", ROWS)
    paths = [
        jsonl,
        write_csv(tmp_path / "r.csv", ROWS),
        write_parquet(tmp_path / "r.parquet", ROWS),
    ]
    raw = jsonl.read_bytes()
    packed = {
        "gz": gzip.compress(raw),
        "bz2": bz2.compress(raw),
        "xz": lzma.compress(raw),
        "zst": pa.Codec("zstd").compress(raw, asbytes=True),
    }
    for ending, content in packed.items():
        paths.append(tmp_path / f"r.jsonl.{ending}")
        paths[-1].write_bytes(content)
    paths.append(tmp_path / "r.csv.gz")
    paths[-1].write_bytes(gzip.compress((tmp_path / "r.csv").read_bytes()))
    for path in paths:
        assert rows_of(path, **fields) == expected, path.name


def test_defaults_name_rows_by_file_and_source_by_stem(tmp_path: Path) -> None:
    path = tmp_path / "news.v2.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n{"text": "b"}\n'))
    assert rows_of(path) == [
        Example("news.v2.jsonl.gz:0", "news.v2.jsonl.gz:0", "news.v2", text="a"),
        Example("news.v2.jsonl.gz:1", "news.v2.jsonl.gz:1", "news.v2", text="b"),
    ]
    assert [e.example_id for e in rows_of(path, name="wiki")] == [
        "wiki/news.v2.jsonl.gz:0",
        "wiki/news.v2.jsonl.gz:1",
    ]


def test_source_column_and_nulls_in_it(tmp_path: Path) -> None:
    rows = [{"text": "a", "s": "x", "d": "p"}, {"text": "b", "s": None, "d": None}]
    got = rows_of(write_jsonl(tmp_path / "r.jsonl", rows), source_column="s", document_column="d")
    assert [(e.source, e.document) for e in got] == [("x", "p"), ("r", "r.jsonl:1")]


def test_byte_order_marks_are_taken_off(tmp_path: Path) -> None:
    for name, content in {"r.jsonl": '{"text": "a"}\n', "r.csv": "text\na\n", "r.txt": "a"}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert [e.text for e in rows_of(tmp_path / name)] == ["a"], name


def test_text_folder_is_one_document_a_file(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "notes", ["b.md", "a.txt"])
    write_texts(folder / "sub", ["c.txt"])
    (folder / "d.txt.gz").write_bytes(gzip.compress(b" \n"))
    (folder / ".hidden.txt").write_text("no")
    assert rows_of(folder) == [
        Example("a.txt:0", "a.txt", "notes", text="text of a.txt"),
        Example("b.md:0", "b.md", "notes", text="text of b.md"),
        Example("d.txt.gz:0", "d.txt.gz", "notes", text=None),
        Example("sub/c.txt:0", "sub/c.txt", "notes", text="text of c.txt"),
    ]
    assert rows_of(folder / "a.txt")[0].source == "a"


def test_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "pages"
    chats = [[{"role": "user", "content": row["page"]}] for row in ROWS]
    saved = datasets.Dataset.from_list([{**r, "chat": c} for r, c in zip(ROWS, chats, strict=True)])
    saved.save_to_disk(folder, num_shards=2)
    (folder / "cache-1234.arrow").write_bytes(b"left by a map")  # not in state.json
    got = rows_of(folder, id_column="id")
    assert [(e.example_id, e.source, e.text) for e in got] == [
        ("7", "pages", ROWS[0]["text"]),
        ("8", "pages", ROWS[1]["text"]),
        ("9", "pages", None),
    ]
    assert [e.document for e in rows_of(folder)] == [
        "data-00000-of-00002.arrow:0",
        "data-00000-of-00002.arrow:1",
        "data-00001-of-00002.arrow:0",
    ]
    assert rows_of(folder, messages_column="chat")[0].messages == (
        {"role": "user", "content": "a"},
    )
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "both")
    said = refused(lambda: rows_of(tmp_path / "both"))
    assert "test, train" in said
    assert len(rows_of(tmp_path / "both" / "train")) == 3
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "incomplete" in refused(lambda: rows_of(folder))


def test_arrow_file_format_is_read_too(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "r.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert [e.text for e in rows_of(path)] == [ROWS[0]["text"], ROWS[1]["text"], None]


def test_explicit_format_reads_files_of_any_ending(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.json", ROWS)
    assert len(rows_of(path, format="jsonl")) == 3
    assert len(rows_of(tmp_path / "*.json", format="jsonl")) == 3


def test_templates(tmp_path: Path) -> None:
    rows = [
        {"q": "Why?", "a b": "So.", "n": 3},
        {"q": "How?", "a b": None, "n": 4},
        {"q": " ", "a b": "", "n": None},
    ]
    path = write_jsonl(tmp_path / "qa.jsonl", rows)
    assert [e.text for e in rows_of(path, template="{{Q{n}}} {q}\n{a b}")] == [
        "{Q3} Why?\nSo.",
        None,
        None,
    ]
    assert [e.text for e in rows_of(path, template="<{q}>")] == ["<Why?>", "<How?>", None]
    pair = rows_of(path, prompt_template="Q: {q}\n", answer_template="A: {a b}")
    assert pair[0] == Example("qa.jsonl:0", "qa.jsonl:0", "qa", "Q: Why?\nA: So.", "Q: Why?\n")
    assert [(e.text, e.prompt) for e in pair[1:]] == [(None, None)] * 2
    constant = rows_of(path, prompt_template="Go on: ", answer_template="{q}")
    assert (constant[1].prompt, constant[1].text) == ("Go on: ", "Go on: How?")


def test_messages_in_every_shape_they_come_in(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "name": "x"}]
    rows = [{"chat": chat}, {"chat": None}, {"chat": []}, {"chat": [{**chat[0], "content": " "}]}]
    texts = [{"chat": json.dumps(row["chat"])} for row in rows]
    expected = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"})
    for path in (
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_jsonl(tmp_path / "b.jsonl", texts),
        write_csv(tmp_path / "c.csv", texts),
        write_parquet(tmp_path / "d.parquet", rows),
    ):
        got = rows_of(path, messages_column="chat")
        assert [e.messages for e in got] == [expected, None, None, None], path.name
        assert all(e.text is None and e.prompt is None for e in got)


def test_jsonl_rows_may_leave_out_nulls(tmp_path: Path) -> None:
    rows = [{"id": 1}, {"id": 2, "text": "b"}, {"id": 3}, {"text": "d", "id": 4}]
    got = rows_of(write_jsonl(tmp_path / "r.jsonl", rows), id_column="id")
    assert [(e.example_id, e.text) for e in got] == [
        ("1", None),
        ("2", "b"),
        ("3", None),
        ("4", "d"),
    ]


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a"}\n' * 1000 + "broken\n")
    rows = read_rows(only(SourceConfig(path=str(path))))
    assert sum(1 for _, _ in zip(range(1000), rows, strict=False)) == 1000
    assert "line 1001" in refused(lambda: next(rows))


def test_one_huge_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    words = random.Random(0).choices(string.ascii_letters, k=2000)
    rows = [{"text": f"{i}" + "".join(words), "unread": "".join(words)} for i in range(10_000)]
    path = tmp_path / "r.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows), path, row_group_size=20_000, compression="none",
        use_dictionary=False,
    )  # fmt: skip
    del rows
    file = only(SourceConfig(path=str(path)))
    before = pa.total_allocated_bytes()
    stream = read_rows(file)
    next(stream)
    assert path.stat().st_size > 40e6
    assert pa.total_allocated_bytes() - before < 6e6
    assert sum(1 for _ in stream) == 9_999


# --- what cannot be read


def bad_files(tmp_path: Path) -> dict[str, tuple[bytes, dict, list[str]]]:
    parquet = write_parquet(tmp_path / "good", ROWS * 500).read_bytes()
    table = pa.Table.from_pylist(ROWS * 500)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    flipped = bytearray(parquet)
    flipped[4 : len(flipped) // 2] = bytes(len(flipped) // 2 - 4)
    return {
        "a.parquet": (b'{"text": "a"}\n', {}, ["expected Parquet", "something else"]),
        "b.parquet": (parquet[:-9], {}, ["expected Parquet", "truncated"]),
        "c.parquet": (bytes(flipped), {}, ["damaged"]),
        "d.parquet": (b"", {}, ["expected Parquet", "an empty file"]),
        "a.arrow": (parquet, {}, ["expected Arrow, found Parquet"]),
        "b.arrow": (sink.getvalue()[:-5000], {}, ["damaged or truncated"]),
        "a.jsonl": (parquet, {}, ["expected JSON lines in UTF-8, found Parquet"]),
        "b.jsonl": (b'{"text": "a"}\n[1]\n', {}, ["line 2 is a JSON list"]),
        "c.jsonl": (b'{"text": "a"}\n{"text": \n', {}, ["line 2 is not JSON"]),
        "d.jsonl": (b'[{"text": "a"},\n{"text": "b"}]\n', {}, ["line 1", "one JSON array"]),
        "e.jsonl": (b'{"text": "a"}\n{"text": "\xe4"}\n', {}, ["UTF-8", "0xe4", "line 2"]),
        "f.jsonl": (b'{"text": "a"}\n' * 99999 + b"\0\n", {}, ["NUL", "line 100000"]),
        "g.jsonl": (b'{"text": "\\ud83d."}\n', {}, ["g.jsonl:0", "surrogate"]),
        "h.jsonl": ('{"text": "a"}'.encode("utf-16"), {}, ["UTF-16"]),
        "i.jsonl": (gzip.compress(b"{}"), {}, ["found gzip", "ending"]),
        "a.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-12], {}, ["truncated"]),
        "b.jsonl.gz": (b'{"text": "a"}\n', {}, ["damaged", "gzip"]),
        "c.jsonl.zst": (b'{"text": "a"}\n', {}, ["damaged"]),
        "d.jsonl.bz2": (b'{"text": "a"}\n', {}, ["damaged"]),
        "a.csv": (b"text,n\na,1\nb,2,3\n", {}, ["2 fields", "line 3 has 3"]),
        "b.csv": (b'text\n"a\n', {}, ["not CSV"]),
        "c.csv": (b"text,text\na,b\n", {}, ["header has 2"]),
        "d.csv": (b"text\na\0\n", {}, ["NUL"]),
        "e.csv": (b"text\nb\xff\n", {}, ["0xff", "line 2"]),
        "a.txt": (b"ab\xe4", {}, ["0xe4", "byte 2"]),
        "b.txt": (b"ab\0", {}, ["NUL byte at byte 2"]),
    }


def test_files_that_are_not_what_they_seem(tmp_path: Path) -> None:
    for name, (content, fields, said) in bad_files(tmp_path).items():
        path = tmp_path / "bad" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        message = refused(lambda: rows_of(path, **fields))  # noqa: B023
        assert str(path) in message
        for word in said:
            assert word in message, (name, message)


def test_texts_that_begin_like_another_format_are_read(tmp_path: Path) -> None:
    for name in ("PAR1", "BZh", "ARROW1"):
        (tmp_path / "a.txt").write_text(f"{name} is how it begins")
        assert rows_of(tmp_path / "a.txt")[0].text == f"{name} is how it begins"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "arrow"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"text_column": "txt"},
            [
                "text_column names column 'txt'",
                "'id', 'page', 'text', 'year'",
                "did you mean 'text'",
            ],
        ),
        ({"template": "{text} {yaer}"}, ["template names column 'yaer'", "mean 'year'"]),
        (
            {"id_column": "zz", "document_column": "pgae"},
            ["id_column names column 'zz' and document_column names column 'pgae'", "mean 'page'"],
        ),
        ({"messages_column": "zz"}, ["set messages_column to what it has"]),
    ],
)
def test_missing_columns(tmp_path: Path, ending: str, fields: dict, said: list[str]) -> None:
    path = tmp_path / f"r.{ending}"
    if ending == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[ending](path, ROWS)
    message = refused(lambda: rows_of(path, **fields))
    for word in said:
        assert word in message


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        ({"text": 3}, {}, "expected text in column 'text', got int"),
        ({"text": ["a"]}, {}, "got list"),
        ({"text": "a", "x": [1]}, {"template": "{text}{x}"}, "number in column 'x', got list"),
        ({"text": "a", "x": None}, {"id_column": "x"}, "id_column 'x', got null"),
        ({"text": "a", "x": " "}, {"id_column": "x"}, "id_column 'x', got a blank"),
        ({"text": "a", "x": True}, {"id_column": "x"}, "got True"),
        ({"text": "a", "x": [1]}, {"document_column": "x"}, "document_column 'x', got [1]"),
        ({"text": "a", "x": {"k": 1}}, {"source_column": "x"}, "source_column 'x', got {'k': 1}"),
        ({"m": "hello"}, {"messages_column": "m"}, "text that is not JSON"),
        ({"m": {"role": "user"}}, {"messages_column": "m"}, "got dict"),
        ({"m": ["hello"]}, {"messages_column": "m"}, "got str as message 0"),
        ({"m": [{"from": "u", "value": "v"}]}, {"messages_column": "m"}, "0 with from, value"),
        (
            {"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
            {"messages_column": "m"},
            "message 1 whose content is NoneType",
        ),
        ({"m": [{"role": "", "content": "a"}]}, {"messages_column": "m"}, "blank role"),
        ({"m": '[{"role": "u", "content": "\\ud800"}]'}, {"messages_column": "m"}, "surrogate"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: dict, fields: dict, said: str) -> None:
    path = tmp_path / "r.jsonl"
    good = {"text": "a", "x": "y", "m": [{"role": "user", "content": "a"}]}
    message = refused(lambda: rows_of(write_jsonl(path, [good, row]), **fields))
    assert said in message
    assert f"{path}:1: " in message


def test_file_that_is_gone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", ROWS)
    file = only(SourceConfig(path=str(path)))
    path.unlink()
    assert "No such file" in refused(lambda: list(read_rows(file)))


# --- finding files


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "corpus.jsonl", ROWS)
    said = refused(lambda: rows_of(tmp_path / "data" / "corpsu.jsonl"))
    assert f"did you mean {tmp_path / 'data' / 'corpus.jsonl'}?" in said
    said = refused(lambda: rows_of(tmp_path / "dtaa" / "corpus.jsonl"))
    assert f"did you mean {tmp_path / 'data'}?" in said
    said = refused(lambda: rows_of(tmp_path / "zzz" / "corpus.jsonl"))
    assert f"{tmp_path} is there, but has no 'zzz'" in said


def test_what_a_folder_may_not_be(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "found none" in refused(lambda: rows_of(empty))
    assert "found none" in refused(lambda: rows_of(tmp_path / "*.jsonl"))
    mixed = tmp_path / "mixed"
    write_jsonl(mixed / "a.jsonl", ROWS)
    write_texts(mixed, ["README.md"])
    said = refused(lambda: rows_of(mixed))
    assert "rows or text documents" in said
    assert "README.md" in said
    assert len(rows_of(mixed, format="jsonl")) == 3
    assert [e.text for e in rows_of(mixed, format="text")] == ["text of README.md"]
    assert "found only .jsonl, .md" in refused(lambda: rows_of(mixed, format="parquet"))
    odd = write_texts(tmp_path / "odd", ["a.docx", "b.parquet.gz", "c.txt"])
    said = refused(lambda: rows_of(odd))
    assert "got a.docx, b.parquet.gz" in said
    assert "c.txt" not in said


def test_text_files_have_no_columns(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "t", ["a.txt"])
    said = refused(lambda: rows_of(folder, text_column="body", id_column="x"))
    assert "text_column and id_column is set" in said


def test_names_are_paths_below_folder_or_glob(tmp_path: Path) -> None:
    for name in ("en/train.jsonl", "en/deep/more.jsonl", "fr/train.jsonl"):
        write_jsonl(tmp_path / name, ROWS[:1])
    names = lambda *paths: [  # noqa: E731
        file.names[0] for file in find_files(SourceConfig(path=tuple(map(str, paths))))
    ]
    assert names(tmp_path) == ["en/deep/more.jsonl", "en/train.jsonl", "fr/train.jsonl"]
    assert names(tmp_path / "*" / "train.jsonl") == ["en/train.jsonl", "fr/train.jsonl"]
    assert names(tmp_path / "en") == ["deep/more.jsonl", "train.jsonl"]
    assert names(tmp_path / "en" / "train.jsonl") == ["train.jsonl"]
    # equal names are told apart; a file named twice is read once
    assert names(tmp_path / "fr" / "train.jsonl", tmp_path / "en") == [
        "fr/train.jsonl",
        "deep/more.jsonl",
        "en/train.jsonl",
    ]
    assert names(tmp_path / "en", tmp_path / "en" / "train.jsonl") == [
        "deep/more.jsonl",
        "train.jsonl",
    ]


def test_relative_paths_and_names_with_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "x[1]" / "r[2].jsonl", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    for path in ("x[1]", "x[1]/r[2].jsonl"):
        file = only(SourceConfig(path=path))
        assert file.names == ("r[2].jsonl",)
        assert file.uris == (str(tmp_path / "x[1]" / "r[2].jsonl"),)


def test_input_file_survives_json(tmp_path: Path) -> None:
    write_texts(tmp_path / "t", [f"{i}.txt" for i in range(100)])
    for file in find_files(SourceConfig(path=(str(tmp_path / "t"),), share=0.5)):
        assert InputFile.model_validate_json(file.model_dump_json()) == file


def test_fingerprint_follows_what_decides_the_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a" / "r.jsonl", ROWS)
    print_of = lambda p: only(SourceConfig(path=str(p))).fingerprint  # noqa: E731
    first = print_of(path)
    assert print_of(write_jsonl(tmp_path / "b" / "r.jsonl", ROWS)) == first
    assert print_of(write_jsonl(tmp_path / "a" / "s.jsonl", ROWS)) != first
    assert print_of(write_jsonl(path, ROWS[:2])) != first


def test_groups_of_text_files_are_content_defined(tmp_path: Path) -> None:
    names = [f"{i:04d}.txt" for i in range(1500)]
    folder = write_texts(tmp_path / "t", names)
    source = SourceConfig(path=str(folder))
    before = find_files(source)
    assert [name for file in before for name in file.names] == names
    assert 1500 / 512 < len(before) < 100
    assert max(len(file.names) for file in before) <= 512

    (folder / "0700b.txt").write_text("one more")
    after = find_files(source)
    old, new = ({f.fingerprint for f in files} for files in (before, after))
    assert len(old - new) == 1
    assert 1 <= len(new - old) <= 2  # two if the new name itself ends a group
    assert sum(len(f.names) for f in after) == 1501

    (folder / "0700b.txt").write_text("changed")
    changed = {f.fingerprint for f in find_files(source)}
    assert len(changed - new) == 1


def test_small_text_folders_have_an_entry_a_file(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "t", [f"{i:02d}.txt" for i in range(64)])
    assert len(find_files(SourceConfig(path=str(folder)))) == 64
    write_texts(folder, ["64.txt"])
    assert len(find_files(SourceConfig(path=str(folder)))) < 10


def test_remote_paths(tmp_path: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/pool/wiki/en/a.jsonl", b'{"text": "a"}\n')
    remote.pipe_file("/pool/wiki/b.jsonl.gz", gzip.compress(b'{"text": "b"}\n'))
    remote.pipe_file("/pool/notes/n.txt", b"note")
    table = write_parquet(tmp_path / "t.parquet", ROWS).read_bytes()
    remote.pipe_file("/pool/t.parquet", table)
    try:
        assert rows_of("memory://pool/wiki/") == [
            Example("b.jsonl.gz:0", "b.jsonl.gz:0", "b", text="b"),
            Example("en/a.jsonl:0", "en/a.jsonl:0", "a", text="a"),
        ]
        assert rows_of("memory://pool/*/*.txt")[0] == Example(
            "notes/n.txt:0", "notes/n.txt", "pool", text="note"
        )
        assert rows_of("memory://pool/notes")[0].source == "notes"
        assert [e.example_id for e in rows_of("memory://pool/t.parquet")] == [
            f"t.parquet:{row}" for row in range(3)
        ]
        source = SourceConfig(path="memory://pool/t.parquet")
        first = only(source).fingerprint
        remote.pipe_file("/pool/t.parquet", table + b" ")
        assert only(source).fingerprint != first
        assert "truncated" in refused(lambda: rows_of("memory://pool/t.parquet"))
        assert "none" in refused(lambda: rows_of("memory://pool/nothing.jsonl"))
    finally:
        remote.rm("/pool", recursive=True)


# --- shards


def split_words(example: Example, max_words: int = MAX_WORDS) -> list[Example]:
    """Cut as a backbone of one token a word would."""
    if example.messages is not None:
        fits = sum(len(m["content"].split()) for m in example.messages) <= max_words
        return [example] if fits else []
    words = (example.text or "").split()
    if len(words) <= max_words:
        return [example]
    if example.prompt is not None and len(example.prompt.split()) >= max_words:
        return []
    cuts = range(0, len(words), max_words)
    return [
        replace(
            example,
            example_id=f"{example.example_id}#{number}",
            text=" ".join(words[start : start + max_words]),
            continues=start != cuts[-1],
        )
        for number, start in enumerate(cuts)
    ]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Sharder"]:
    monkeypatch.setattr(corpus, "open_splitter", lambda _config: split_words)
    monkeypatch.setattr(corpus, "input_fingerprint", lambda config: f"words-{config.path}")
    return Sharder(tmp_path / "root")


class Sharder:
    """Makes shards of a source with the splitter above."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(str(root))

    def make(self, file: InputFile, rows: int = 4096, backbone: str = "words") -> ArtifactRef:
        return make_shards(
            file,
            BackboneConfig(path=backbone, max_length=MAX_WORDS),
            ShardConfig(rows=rows),
            Runtime(root=self.store.root),
        )

    def __call__(
        self, path: object, rows: int = 4096, **fields: object
    ) -> tuple[Manifest, list[Example]]:
        ref = self.make(only(SourceConfig(path=str(path), **fields)), rows)
        manifest, folder = self.store.manifest(ref), self.store.folder(ref)
        examples = []
        for part in manifest.facts["parts"]:
            table = read_table(folder / part["name"])
            assert table.schema.equals(EXAMPLE_SCHEMA)
            assert table.num_rows == part["rows"] <= rows
            examples += table_to_examples(table)
        assert {f.path for f in manifest.files} == {p["name"] for p in manifest.facts["parts"]}
        assert manifest.rows == len(examples)
        return manifest, examples


def test_shards_hold_every_row_cut_to_size(tmp_path: Path, shard: Sharder) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    rows = [
        {"i": "long", "d": "x", "text": " ".join(map(str, range(20)))},
        {"i": "short", "d": "x", "text": "a b"},
        {"i": "none", "d": "y", "text": None},
        {"i": "blank", "d": "z", "text": "\n "},
        {"i": "last", "d": "w", "text": "c"},
    ]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    manifest, examples = shard(path, rows=2, id_column="i", document_column="d")
    assert [e.example_id for e in examples] == ["long#0", "long#1", "long#2", "short", "last"]
    assert " ".join(e.text for e in examples[:3]) == rows[0]["text"]
    assert [e.continues for e in examples] == [True, True, False, False, False]
    assert manifest.facts == {
        "files": [str(path)],
        "rows": 5,
        "documents": 2,
        "null_rows": 2,
        "null_ids": ["none", "blank"],
        "left_out_rows": 0,
        "unfit_rows": 0,
        "unfit_ids": [],
        "split_rows": 1,
        "parts": [
            {"name": "part-00000.parquet", "rows": 2},
            {"name": "part-00001.parquet", "rows": 2},
            {"name": "part-00002.parquet", "rows": 1},
        ],
        "sources": {"r": 5},
    }
    _, chats = shard(write_jsonl(tmp_path / "c.jsonl", [{"m": chat}]), messages_column="m")
    assert chats == [Example("c.jsonl:0", "c.jsonl:0", "c", messages=tuple(chat))]


def test_rows_without_room_for_an_answer_are_counted(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"q": "a " * 9, "a": "b"}] * 7 + [{"q": "a", "a": "b"}]
    manifest, examples = shard(
        write_jsonl(tmp_path / "r.jsonl", rows), prompt_template="{q}: ", answer_template="{a}"
    )
    assert examples == [Example("r.jsonl:7", "r.jsonl:7", "r", text="a: b", prompt="a: ")]
    assert manifest.facts["unfit_rows"] == 7
    assert manifest.facts["unfit_ids"] == [f"r.jsonl:{row}" for row in range(5)]
    assert manifest.facts["documents"] == 1


def test_many_small_parts_hold_one_part_in_memory(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    ahead = []

    def counted(example: Example) -> list[Example]:
        nonlocal read
        read += 1
        return [example]

    def written(table: pa.Table, path: Path) -> None:
        ahead.append(read - 10 * len(ahead))
        write(table, path)

    write = corpus.write_table
    monkeypatch.setattr(corpus, "open_splitter", lambda _config: counted)
    monkeypatch.setattr(corpus, "write_table", written)
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": f"t{i}"} for i in range(1000)])
    manifest, examples = shard(path, rows=10)
    assert [e.text for e in examples] == [f"t{i}" for i in range(1000)]
    assert len(manifest.facts["parts"]) == 100
    assert ahead == [10] * 100  # each part is written before the next one's rows are read


def test_refusals_name_file_and_row(tmp_path: Path, shard: Sharder) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}, {"text": "b " * 9}, {"text": None}])
    said = refused(lambda: shard(path, overlong="refuse"))
    assert f"{path}:1: expected a row that fits in {MAX_WORDS} tokens" in said
    said = refused(lambda: shard(path, on_null="refuse"))
    assert f"{path}:2: expected text, the row's is null or blank" in said
    manifest, _ = shard(path)
    assert (manifest.facts["null_rows"], manifest.facts["split_rows"]) == (1, 1)
    long = write_jsonl(tmp_path / "p.jsonl", [{"q": "a " * 9, "a": "b"}])
    fields = {"prompt_template": "{q}", "answer_template": "{a}"}
    assert "fits in" in refused(lambda: shard(long, overlong="refuse", **fields))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", "", "got 0 rows"),
        ("r.csv", "text\n", "got 0 rows"),
        ("r.jsonl", '{"text": null}\n{"text": ""}\n', "got 2 rows, 2 of them null"),
        ("r.jsonl", '{"text": "' + "a " * 99 + '"}\n', "1 with no room"),
    ],
)
def test_files_without_a_usable_row(
    tmp_path: Path, shard: Sharder, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    fields = {"prompt_template": "{text}", "answer_template": "{text}"} if "a a" in content else {}
    for share in (1.0, 0.001):
        if fields and share < 1:
            continue  # the one row may be left out for its document's sake
        assert said in refused(lambda: shard(path, share=share, **fields))  # noqa: B023
    assert shard.store.resolve  # nothing was published
    assert list(shard.store.all_refs()) == []


def test_blank_text_file_is_skipped_as_a_row_is(tmp_path: Path, shard: Sharder) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n")
    manifest, examples = shard(path)
    assert examples == []
    assert manifest.facts["null_ids"] == ["a.txt:0"]
    assert "is null or blank" in refused(lambda: shard(path, on_null="refuse"))


def test_shares_are_nested_stable_and_keep_documents_whole(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"text": f"t{i}", "d": f"d{i // 3}", "i": f"r{i}"} for i in range(3000)]
    more = [{"text": "new", "d": f"n{i}", "i": f"n{i}"} for i in range(50)] + rows
    fields = {"document_column": "d", "id_column": "i"}
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    kept: dict[float, set[str]] = {}
    for share in (0.1, 0.3, 1.0):
        manifest, examples = shard(path, share=share, **fields)
        documents = {e.document for e in examples}
        # within five standard deviations of a binomial over 1000 documents
        assert abs(len(documents) - 1000 * share) <= 5 * (1000 * share * (1 - share)) ** 0.5
        assert len(examples) == 3 * len(documents)
        assert manifest.facts["documents"] == len(documents)
        assert manifest.facts["left_out_rows"] == 3000 - len(examples)
        kept[share] = documents
    assert kept[0.1] < kept[0.3] < kept[1.0]
    _, examples = shard(write_jsonl(tmp_path / "more.jsonl", more), share=0.3, **fields)
    assert {e.document for e in examples if e.document.startswith("d")} == kept[0.3]


def test_share_may_leave_a_file_without_rows(tmp_path: Path, shard: Sharder) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}])
    manifest, examples = shard(path, share=1e-9)
    assert examples == []
    assert manifest.files == ()
    assert manifest.facts["left_out_rows"] == 1
    assert manifest.facts["parts"] == []


def test_key_follows_content_config_and_tokenizer_but_not_place(
    tmp_path: Path, shard: Sharder
) -> None:
    def key(path: Path, backbone: str = "words", rows: int = 4096, **fields: object) -> str:
        return shard.make(only(SourceConfig(path=str(path), **fields)), rows, backbone).key

    path = write_jsonl(tmp_path / "a" / "r.jsonl", ROWS)
    first = key(path)
    moved = only(SourceConfig(path=str(write_jsonl(tmp_path / "b" / "r.jsonl", ROWS))))
    assert shard.make(moved).reused
    others = [
        key(path, backbone="other"),
        key(path, rows=7),
        key(path, share=0.999),
        key(path, name="x"),
        key(path, text_column="page"),
        key(write_jsonl(tmp_path / "a" / "s.jsonl", ROWS)),
        key(write_jsonl(path, ROWS[:2])),
    ]
    assert len({first, *others}) == 8


def test_progress_counts_bytes(tmp_path: Path, shard: Sharder) -> None:
    told: list[object] = []

    class Told(progress.Silent):
        @contextmanager
        def track(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            told.append((label, total, unit))
            yield told.append

    jsonl = write_jsonl(tmp_path / "r.jsonl", ROWS)
    parquet = write_parquet(tmp_path / "p.parquet", ROWS)
    with progress.reporting_to(Told()):
        for path in (jsonl, parquet):
            told.clear()
            shard(path)
            assert told[0] == (f"cut {path.stem}", path.stat().st_size, "bytes")
            assert sum(told[1:]) == path.stat().st_size  # type: ignore[arg-type]


# --- ids that occur twice


def test_repeated_id_in_a_file_names_both_rows(tmp_path: Path, shard: Sharder) -> None:
    for first, second in (("a", "a"), ("a " * 9, "a " * 9)):  # whole, and cut in pieces
        rows = [{"i": f"r{i}", "text": "t"} for i in range(30)]
        rows[4] = {"i": "twice", "text": first}
        rows[21] = {"i": "twice", "text": second}
        path = write_jsonl(tmp_path / "r.jsonl", rows)
        said = refused(lambda: shard(path, rows=5, id_column="i"))  # noqa: B023
        assert said.startswith(f"{path}:21: ")
        assert f"'twice{'#0' if first != 'a' else ''}' is also in {path}:4" in said
        assert list(shard.store.all_refs()) == []
    rows = [{"i": "a#1", "text": "t"}, {"i": "a", "text": "t " * 9}]  # a's second piece is a#1 too
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    said = refused(lambda: shard(path, id_column="i"))
    assert f"{path}:1: expected each id once, 'a#1' is also in {path}:0" in said


def test_repeated_id_across_files_names_both(tmp_path: Path, shard: Sharder) -> None:
    def make(folder: str, **fields: object) -> ArtifactRef:
        return shard.make(only(SourceConfig(path=str(tmp_path / folder), **fields)), rows=3)

    write_jsonl(tmp_path / "x" / "r.jsonl", [{"text": f"x{i}"} for i in range(10)])
    write_jsonl(tmp_path / "y" / "r.jsonl", [{"text": f"y{i}"} for i in range(10)])
    write_texts(tmp_path / "z", ["r.txt"])
    x, y, z = make("x"), make("y"), make("z")
    refuse_duplicates(shard.store, [])
    refuse_duplicates(shard.store, [x, z])
    said = refused(lambda: refuse_duplicates(shard.store, [x, z, y]))
    assert f"{tmp_path}/y/r.jsonl: expected each id once, 'r.jsonl:0' is also in" in said
    assert f"also in {tmp_path}/x/r.jsonl" in said
    refuse_duplicates(shard.store, [x, z, make("y", name="why")])  # what the remedy says
    assert "also in" in refused(lambda: refuse_duplicates(shard.store, [x, x]))


def test_ids_that_only_share_a_hash_are_not_repeated(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "hash", lambda _text: 7, raising=False)
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": f"t{i}"} for i in range(5)])
    ref = shard.make(only(SourceConfig(path=str(path))))
    refuse_duplicates(shard.store, [ref])
    assert "also in" in refused(lambda: refuse_duplicates(shard.store, [ref, ref]))


# --- looking before reading


def test_check_finds_nothing_wrong_in_what_is_right(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", ROWS)
    write_parquet(tmp_path / "d" / "b.parquet", ROWS)
    assert check_source(SourceConfig(path=str(tmp_path / "d"))) == []


def test_check_tells_every_problem(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write_jsonl(folder / "a.jsonl", [{"txet": "a"}])
    (folder / "b.parquet").write_bytes(b"no")
    write_jsonl(folder / "c.jsonl", [{"text": None}])
    write_jsonl(folder / "d.jsonl", ROWS)
    source = SourceConfig(path=(str(tmp_path / "gone.jsonl"), str(folder)))
    problems = check_source(source)
    assert all(isinstance(problem, AlbatError) for problem in problems)
    said = [str(problem) for problem in problems]
    assert len(said) == 4
    for message, words in zip(
        said,
        ["gone.jsonl", "mean 'txet'", "b.parquet: expected Parquet", "c.jsonl: expected rows with"],
        strict=True,
    ):
        assert words in message
    (null,) = check_source(SourceConfig(path=str(folder / "d.jsonl"), on_null="refuse"))
    assert null.where == f"{folder / 'd.jsonl'}:2"
    blank = write_texts(tmp_path / "t", [])
    (blank / "a.txt").write_text(" ")
    (empty,) = check_source(SourceConfig(path=str(blank)))
    assert "every file is blank" in str(empty)


def test_check_reads_heads_only_and_no_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a"}\n' * 5000 + "broken\n")
    monkeypatch.setattr(storage, "fingerprint", lambda _uri: pytest.fail("read whole"))
    assert check_source(SourceConfig(path=str(path))) == []


# --- with a real tokenizer


def test_shards_cut_by_a_backbones_own_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<eos>", "<unk>", *string.ascii_lowercase])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "model.safetensors").write_bytes(b"")  # weights are not read to cut text
    text = " ".join(string.ascii_lowercase)
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": text}, {"text": "a b"}])
    store = ArtifactStore(str(tmp_path / "root"))
    ref = make_shards(
        only(SourceConfig(path=str(path))),
        BackboneConfig(path=str(folder), max_length=10),
        ShardConfig(),
        Runtime(root=store.root),
    )
    examples = table_to_examples(read_table(store.folder(ref) / "part-00000.parquet"))
    assert "".join(e.text for e in examples[:-1]) == text
    assert [e.example_id for e in examples] == ["r.jsonl:0#0", "r.jsonl:0#1", "r.jsonl:0#2",
                                                "r.jsonl:1"]  # fmt: skip
    assert all(len(e.text.split()) <= 9 for e in examples)
