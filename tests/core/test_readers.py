"""Readers: every format gives the same rows, and damage is named."""

import bz2
import gzip
import io
import json
import lzma
import random
import string
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from albat_core.errors import InputError, TransientError
from albat_core.records.examples import Example
from albat_core.sources.checks import check_source
from albat_core.sources.config import SourceConfig
from albat_core.sources.formats import base, json_file, text, webdataset
from albat_core.sources.readers import stream_rows
from albat_core.sources.rows import read_rows
from albat_core.store import storage
from tests.core.row_files import ROWS, only, refused, rows_of, write_csv, write_jsonl, write_parquet


def packed(raw: bytes, ending: str) -> bytes:
    """Compress as a file's ending says."""
    if ending == "zst":
        return pa.Codec("zstd").compress(raw, asbytes=True)
    return {"gz": gzip, "bz2": bz2, "xz": lzma}[ending].compress(raw)


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
    for ending in ("gz", "bz2", "xz", "zst"):
        paths.append(tmp_path / f"r.jsonl.{ending}")
        paths[-1].write_bytes(packed(jsonl.read_bytes(), ending))
    paths.append(tmp_path / "r.csv.gz")
    paths[-1].write_bytes(gzip.compress((tmp_path / "r.csv").read_bytes()))
    for path in paths:
        assert rows_of(path, **fields) == expected, path.name


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_packed_files_that_were_joined_are_read_to_their_end(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"r.jsonl.{ending}"
    lines = (f'{{"text": "{n}"}}\n'.encode() for n in range(3))
    path.write_bytes(b"".join(packed(line, ending) for line in lines))
    assert [row.text for row in rows_of(path)] == ["0", "1", "2"]  # as cat a.gz b.gz is
    path.write_bytes(path.read_bytes()[:-3])
    assert "truncated" in refused(lambda: rows_of(path))


def test_byte_order_marks_are_taken_off(tmp_path: Path) -> None:
    for name, content in {"r.jsonl": '{"text": "a"}\n', "r.csv": "text\na\n", "r.txt": "a"}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert [e.text for e in rows_of(tmp_path / name)] == ["a"], name
    for name in ("r.jsonl", "r.json", "r.csv"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf")
        assert rows_of(tmp_path / name) == [], name


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
    data = folder / "data-00001-of-00002.arrow"
    content = data.read_bytes()
    data.unlink()
    assert "incomplete" in refused(lambda: rows_of(folder))
    data.write_bytes(content)
    (folder / "state.json").unlink()  # as in the library's own cache
    assert len(rows_of(folder)) == 3


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
        pa.Table.from_pylist(rows),
        path,
        row_group_size=20_000,
        compression="none",
        use_dictionary=False,
    )
    del rows
    file = only(SourceConfig(path=str(path)))
    before = pa.total_allocated_bytes()
    tracemalloc.start()  # what Python reads for Arrow is outside Arrow's own count
    stream = read_rows(file)
    next(stream)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 40e6
    assert pa.total_allocated_bytes() - before < 6e6
    assert peak < 6e6
    assert sum(1 for _ in stream) == 9_999


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
        "c.csv": (b"text,text\na,b\n", {}, ["the file has 2"]),
        "f.csv": (b"text,n\ra,1\rb,2\r", {}, ["carriage returns", "CSV UTF-8"]),
        "g.csv": (b"text\ra\r\nb\r\n", {}, ["not CSV"]),
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


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_damage_of_a_remote_file_is_told_apart_from_storage_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    lines = "".join(f'{{"text": "{number * 7919 % 104729}"}}\n' for number in range(9999)).encode()
    whole = packed(lines, ending)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    uri = f"memory://{tmp_path}/r.jsonl.{ending}"
    for content in (whole[: len(whole) // 2], bytes(flipped), lines):
        storage.write_bytes(uri, content)
        with pytest.raises(InputError, match="damaged or truncated"):
            list(stream_rows(uri, "jsonl", None, lambda _: None))
    storage.write_bytes(uri, whole)
    assert sum(1 for _ in stream_rows(uri, "jsonl", None, lambda _: None)) == 9999

    def fail(*_: object) -> bytes:
        raise OSError("connection lost")

    with storage.open_binary(uri) as opened:
        monkeypatch.setattr(type(opened._file), "read", fail)  # type: ignore[attr-defined]
    with pytest.raises(TransientError, match="connection lost"):
        list(stream_rows(uri, "jsonl", None, lambda _: None))


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.txt"])
@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_an_empty_file_is_packed_nothing_only_where_it_has_bytes(
    tmp_path: Path, name: str, ending: str
) -> None:
    path = tmp_path / f"{name}.{ending}"
    path.write_bytes(b"")  # as a download that failed leaves it
    found = "found an empty one" if ending in ("gz", "zst") else "damaged or truncated"
    assert found in refused(lambda: rows_of(path))
    path.write_bytes(packed(b"", ending))
    assert [row.text for row in rows_of(path)] == ([None] if name == "r.txt" else [])
    (tmp_path / name).write_bytes(b"")
    assert len(rows_of(tmp_path / name)) == (name == "r.txt")


def test_damage_that_a_parser_meets_before_the_checksum_is_told(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(10**9, size=200_000)
    whole = gzip.compress("".join(f'{{"text": "{n}"}}\n' for n in numbers).encode())
    path, said = tmp_path / "r.jsonl.gz", set()
    for place in range(len(whole) // 40, len(whole) // 4, len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError) as caught:
            list(stream_rows(str(path), "jsonl", None, lambda _: None))
        said.add(caught.value.message.partition(" (")[0])
    assert said == {"the file is damaged or truncated"}


def test_damage_of_a_remote_table_is_told(tmp_path: Path) -> None:
    content = write_parquet(tmp_path / "good", ROWS * 500).read_bytes()
    uri = f"memory://{tmp_path}/r.parquet"
    storage.write_bytes(
        uri, content[:4] + bytes(len(content) // 2) + content[4:][len(content) // 2 :]
    )
    with pytest.raises(InputError, match="damaged"):
        list(stream_rows(uri, "parquet", None, lambda _: None))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
"""As the specification of Git LFS has it."""


@pytest.mark.parametrize(
    "name",
    ["a.txt", "a.md", "a.csv", "a.jsonl", "a.parquet", "a.arrow", "a.tar", "a.jsonl.gz", "a.png"],
)
def test_a_pointer_of_git_lfs_is_no_row(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    source = SourceConfig(path=str(tmp_path / name), template="a dog" if "png" in name else None)
    (problem,) = check_source(source)
    assert str(tmp_path / name) in str(problem)
    assert "pointer of Git LFS" in str(problem)
    assert "git lfs pull" in str(problem)


def test_a_text_about_git_lfs_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(POINTER + b"is what a pointer looks like. " * 50)
    assert len(rows_of(tmp_path / "a.txt")) == 1


def test_texts_that_begin_like_another_format_are_read(tmp_path: Path) -> None:
    for name in ("PAR1", "BZh", "ARROW1"):
        (tmp_path / "a.txt").write_text(f"{name} is how it begins")
        assert rows_of(tmp_path / "a.txt")[0].text == f"{name} is how it begins"


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, ending: str) -> None:
    left = pa.table({"id": [1, 2], "text": ["a", "b"]})
    table = left.join(pa.table({"id": [1, 2], "text": ["c", "d"]}), keys="id")
    assert table.column_names == ["id", "text", "text"]  # as a join of pyarrow leaves them
    path = tmp_path / f"r.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending == "csv":
        pacsv.write_csv(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    assert "expected one column 'text', the file has 2" in refused(lambda: rows_of(path))
    assert [row.text for row in rows_of(path, template="{id}")] == ["1", "2"]


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
    "name", ["a.jsonl", "a.csv", "a.json", "b.json", "a.txt", "a.tar", "b.tar"]
)
def test_what_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Small compressed, and endless."""
    for module in (base, json_file, text, webdataset):
        for limit in ("LONGEST_ROW", "LONGEST_LINE", "LONGEST_FILE", "_LONGEST_NAME"):
            monkeypatch.setattr(module, limit, 1 << 20, raising=False)
    much = "a" * (3 << 20)
    contents = {
        "a.jsonl": '{"text": "a"}\n' + json.dumps({"text": much}),
        "a.csv": f"text\na\n{much}\n",
        "a.json": json.dumps([{"text": much}]),
        "b.json": "[\n" + ",\n".join(['{"text": "leaf"}'] * 200_000) + "\n]",
        "a.txt": much,
    }
    path = tmp_path / f"{name}.gz"
    if name in contents:
        path.write_bytes(gzip.compress(contents[name].encode()))
    else:
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("0.txt" if name == "a.tar" else much + ".txt")
            member.size = len(much)
            archive.addfile(member, io.BytesIO(much.encode()))
    tracemalloc.start()
    told = refused(lambda: rows_of(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "at most 1 MiB at once" in told or "a name of 3," in told
    assert peak < 3 * len(much)


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.txt"},
        {"GNU.sparse.map": "0,1,2,3", "GNU.sparse.size": "9"},
        {"GNU.sparse.size": "many"},
        {"size": "many"},
    ],
)
def test_strange_headers_of_an_archive_are_told(tmp_path: Path, headers: dict[str, str]) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("0.txt")
        member.size, member.pax_headers = 600, headers
        archive.addfile(member, io.BytesIO(b"1\n" * 300))
    told = refused(lambda: rows_of(path))
    assert "damaged" in told


def test_many_names_of_one_member_are_told(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "a.tar").write_bytes((header.tobuf() + b"a".ljust(512, b"\0")) * 5000)
    assert "damaged" in refused(lambda: rows_of(tmp_path / "a.tar"))


def test_file_that_is_gone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", ROWS)
    file = only(SourceConfig(path=str(path)))
    path.unlink()
    assert "No such file" in refused(lambda: list(read_rows(file)))
