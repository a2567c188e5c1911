"""Files of a source: found, named, grouped, fingerprinted."""

import gzip
import os
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest

from albat_core.records.examples import Example
from albat_core.sources import files as input_files
from albat_core.sources.config import SourceConfig
from albat_core.sources.contents import refuse_changed
from albat_core.sources.files import InputFile, find_files, find_problems
from albat_core.store import storage
from tests.core.row_files import (
    ROWS,
    only,
    refused,
    rows_of,
    write_jsonl,
    write_parquet,
    write_texts,
)


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


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
@pytest.mark.parametrize("name", [b"\xe9.txt", b"\xe9.jsonl", b"\xe9/a.txt"])
def test_names_that_are_no_utf8_are_refused(tmp_path: Path, name: bytes) -> None:
    odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118 - of bytes
    odd.parent.mkdir(exist_ok=True)
    odd.write_text('{"text": "a"}\n', encoding="utf-8")
    source = SourceConfig(path=str(tmp_path))
    for said in (refused(lambda: find_files(source)), *map(str, find_problems(source)[1])):
        assert said.isascii()
        assert f"{str(odd)!a}: expected names of files in UTF-8" in said
        assert "rename it" in said
    write_jsonl(tmp_path / "good.jsonl", ROWS[:1])
    assert len(rows_of(tmp_path / "g*.jsonl")) == 1


def test_an_archive_of_files_is_not_read_as_its_first(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.jsonl.zip", "w") as archive:
        for name in ("one.jsonl", "two.jsonl"):
            archive.writestr(name, '{"text": "t"}\n')
    for form in ("auto", "jsonl"):
        said = refused(lambda: rows_of(tmp_path / "rows.jsonl.zip", format=form))  # noqa: B023
        assert "expected files, got an archive of them (rows.jsonl.zip)" in said


def test_a_file_that_is_written_to_after_it_was_found_is_told(tmp_path: Path) -> None:
    for root in (str(tmp_path), f"memory://{tmp_path}"):
        uri = f"{root}/a.jsonl"
        storage.write_bytes(uri, b'{"text": "t"}\n')
        file = only(SourceConfig(path=uri))
        refuse_changed(file.uris, file.states)
        storage.write_bytes(uri, b'{"text": "u", "more": 1}\n')
        assert f"{uri}: expected a file that stays as it was found" in refused(
            lambda: refuse_changed(file.uris, file.states)  # noqa: B023
        )


def test_a_folder_that_is_written_out_among_files_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a", ROWS)
    (tmp_path / "b").mkdir()
    said = refused(lambda: rows_of(tmp_path / "{a,b}", format="jsonl"))
    assert f"{tmp_path / 'b'}: expected files, got a folder" in said
    said = refused(lambda: rows_of(tmp_path / "{a,c}", format="jsonl"))
    assert f"{tmp_path / 'c'}: expected a file or a folder, found none" in said


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
    files = find_files(SourceConfig(path=(str(tmp_path / "t"),), share=0.5))
    assert files
    for file in files:
        assert InputFile.model_validate_json(file.model_dump_json()) == file


def test_fingerprint_follows_what_decides_the_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a" / "r.jsonl", ROWS)

    def print_of(path: Path) -> str:
        return only(SourceConfig(path=str(path), name="same")).fingerprint

    first = print_of(path)
    assert print_of(write_jsonl(tmp_path / "b" / "r.jsonl", ROWS)) == first
    assert print_of(write_jsonl(tmp_path / "a" / "s.jsonl", ROWS)) != first
    assert print_of(write_jsonl(path, ROWS[:2])) != first
    texts = [write_texts(tmp_path / folder, ["a.txt"]) for folder in ("t", "u")]
    one, other = (only(SourceConfig(path=str(folder))).fingerprint for folder in texts)
    assert one != other  # their rows' source is the folder's name


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


def test_groups_of_text_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_texts(tmp_path / "t", [f"{i:03d}.txt" for i in range(200)])
    monkeypatch.setattr(input_files, "_GROUP_LIMIT", 10)
    sizes = [len(file.names) for file in find_files(SourceConfig(path=str(folder)))]
    assert max(sizes) == 10
    assert sum(sizes) == 200


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
        remote.pipe_file("/pool/bad.jsonl.gz", b"not packed\n")  # no failure of the storage
        assert "BadGzipFile" in refused(lambda: rows_of("memory://pool/bad.jsonl.gz"))
        assert "none" in refused(lambda: rows_of("memory://pool/nothing.jsonl"))
    finally:
        remote.rm("/pool", recursive=True)
