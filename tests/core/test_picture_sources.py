"""Sources of pictures: folders with captions, columns, WebDataset; what is wrong is named."""

import base64
import csv
import gzip
import io
import json
import os
import tracemalloc
import unicodedata
from itertools import pairwise
from pathlib import Path, PureWindowsPath

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.errors import InputError
from albat_core.records.examples import Example
from albat_core.sources import files as input_files
from albat_core.sources.checks import check_source
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.sources.rows import read_rows
from albat_core.store import fingerprints, storage
from tests.core.picture_files import encoded, pattern, tar_of, write_pictures
from tests.core.row_files import only, refused, rows_of, write_csv, write_jsonl, write_parquet


def captions(path: object, **fields: object) -> dict[str, str | None]:
    return {e.example_id: e.text for e in rows_of(path, **fields)}


def prints(path: object, **fields: object) -> list[str]:
    return [file.fingerprint for file in find_files(SourceConfig(path=str(path), **fields))]


def test_folder_with_captions_beside(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    content = write_pictures(folder, ["a.png", "b.JPG", "deep/c.webp"])
    (folder / "a.txt").write_text("a red dog\n")
    (folder / "deep" / "c.txt").write_text("\ufeffa blue dog")
    expected = [
        Example("a.png:0", "a.png", "dogs", text="a red dog\n", image=content["a.png"]),
        Example("b.JPG:0", "b.JPG", "dogs", image=content["b.JPG"]),
        Example(
            "deep/c.webp:0", "deep/c.webp", "dogs", text="a blue dog", image=content["deep/c.webp"]
        ),
    ]
    assert rows_of(folder) == expected
    assert rows_of(folder, format="images") == expected
    assert rows_of(folder / "*.png")[0].text == "a red dog\n"
    (alone,) = rows_of(folder / "a.png")
    assert (alone.source, alone.text) == ("a", "a red dog\n")


def test_one_prompt_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    write_pictures(folder, ["a.png", "b.png"])
    assert set(captions(folder, template="a photo of sks dog").values()) == {"a photo of sks dog"}
    named = captions(folder, template="a photo of {token} dog", token="sks")
    assert set(named.values()) == {"a photo of sks dog"}
    table = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    assert "names no column" in refused(lambda: rows_of(table, template="a photo of sks dog"))
    said = refused(lambda: rows_of(table, template="a photo of {token} dog", token="sks"))
    assert "names no column" in said
    assert captions(table, template="{text} {token}", token="sks") == {"t.jsonl:0": "a sks"}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_folder_with_a_table(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, ["a.png", "b.png", "deep/c.png", "deep/d.png"])
    rows = [
        {"file_name": "a.png", "text": "table", "class": "dog"},
        {"file_name": "./deep/c.png", "text": "", "class": "cat"},
        {"file_name": "deep/d.png", "text": "D", "class": "cat"},
    ]
    {"jsonl": write_jsonl, "csv": write_csv}[kind](folder / f"metadata.{kind}", rows)
    (folder / "a.txt").write_text("beside")
    (folder / "b.txt").write_text("beside")
    (folder / "deep" / "c.caption").write_text("beside")
    assert captions(folder) == {
        "a.png:0": "table",
        "b.png:0": "beside",
        "deep/c.png:0": "beside",  # the table's cell is empty
        "deep/d.png:0": "D",
    }
    assert captions(folder, template="a {class} in {file_name}") == {
        "a.png:0": "a dog in a.png",
        "b.png:0": None,
        "deep/c.png:0": "a cat in deep/c.png",
        "deep/d.png:0": "a cat in deep/d.png",
    }
    assert captions(folder / "*.png")["a.png:0"] == "table"
    said = refused(lambda: rows_of(folder, template="a {clas}"))
    assert "template names column 'clas'" in said
    assert "did you mean 'class'" in said
    write_jsonl(folder / "deep" / "metadata.jsonl", [{"file_name": "c.png", "text": "nearest"}])
    assert captions(folder)["deep/c.png:0"] == "nearest"
    assert captions(folder)["deep/d.png:0"] is None


def test_a_table_above_the_pictures_of_a_glob_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, ["train/a/b.png", "train/a/c.png", "train/d.png"])
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "train/a/b.png", "text": "top"}])
    assert captions(folder / "*" / "*" / "*.png") == {
        "train/a/b.png:0": "top",
        "train/a/c.png:0": None,
    }
    write_jsonl(folder / "train" / "metadata.jsonl", [{"file_name": "a/c.png", "text": "nearer"}])
    assert captions(f"{folder}/**/*.png") == {
        "train/a/b.png:0": None,
        "train/a/c.png:0": "nearer",
        "train/d.png:0": None,
    }
    assert captions(folder / "{train,test}" / "a" / "*.png") == captions(
        folder / "*" / "a" / "c.png"
    ) | {"train/a/b.png:0": None}
    before = prints(folder / "train" / "*" / "*.png")
    write_jsonl(folder / "train" / "metadata.jsonl", [{"file_name": "a/c.png", "text": "other"}])
    assert prints(folder / "train" / "*" / "*.png") != before
    assert captions(folder / "train" / "a" / "*.png") == {"b.png:0": None, "c.png:0": None}


MAC, LINUX = (unicodedata.normalize(form, "\u00e9t\u00e9/\u00fc") for form in ("NFD", "NFC"))
"""One name, as HFS+ writes it and as keyboards do."""


@pytest.mark.parametrize(("there", "said"), [(MAC, LINUX), (LINUX, MAC)])
def test_a_name_is_the_same_in_both_its_spellings(tmp_path: Path, there: str, said: str) -> None:
    assert there != said
    content = write_pictures(tmp_path, [f"{there}.png"])[f"{there}.png"]
    table = write_jsonl(tmp_path / "t.jsonl", [{"image": f"{said}.png", "text": "a"}])
    assert [(r.text, r.image) for r in rows_of(table, image_column="image")] == [("a", content)]
    table.unlink()
    table = write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": f"{said}.png", "text": "b"}])
    assert [row.text for row in rows_of(tmp_path)] == ["b"]
    table.unlink()
    (tmp_path / there).parent.joinpath(f"{said.rpartition('/')[2]}.txt").write_text("c")
    assert [row.text for row in rows_of(tmp_path)] == ["c"]


def test_paths_of_windows_are_found(tmp_path: Path) -> None:
    content = write_pictures(tmp_path, ["train/a.png", "b\\c.png"])
    name = str(PureWindowsPath("train") / "a.png")
    assert name == "train\\a.png"
    rows = [{"image": n, "file_name": n, "text": n} for n in (name, "b\\c.png")]
    table = write_jsonl(tmp_path / "t.jsonl", rows)
    found = [row.image for row in rows_of(table, image_column="image")]
    assert found == [content["train/a.png"], content["b\\c.png"]]  # one is a name of this system
    table.rename(tmp_path / "metadata.jsonl")
    assert captions(tmp_path) == {"train/a.png:0": name, "b\\c.png:0": "b\\c.png"}


def test_captions_as_sd_scripts_names_them(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.caption").write_text("a dog")
    (tmp_path / "b.txt").write_text("b dog")
    expected = {"a.png:0": "a dog", "b.png:0": "b dog"}
    assert captions(tmp_path) == captions(tmp_path, format="images") == expected
    assert captions(tmp_path / "*", format="images") == expected
    before = prints(tmp_path)
    (tmp_path / "a.caption").write_text("a cat")
    assert prints(tmp_path) != before


def test_without_a_table_there_are_no_columns(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", ["a.png"])
    said = refused(lambda: rows_of(tmp_path / "p", text_column="caption"))
    assert "text_column names column 'caption'" in said
    assert "'image', 'text', 'file_name'" in said


def test_what_a_table_of_pictures_may_not_be(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, ["a.png", "b.png"])
    table = folder / "metadata.jsonl"
    rows = [{"file_name": "a.png"}, {"file_name": "gone.png"}, {"file_name": "x.png"}]
    write_jsonl(table, rows)
    said = refused(lambda: rows_of(folder))
    assert str(table) in said
    assert "'gone.png', found none, nor 1 more" in said
    write_jsonl(table, rows[:2])
    assert "'gone.png', found none\n" in refused(lambda: rows_of(folder))
    write_jsonl(table, [rows[0], rows[0]])
    assert f"{table}:1: expected one row a picture" in refused(lambda: rows_of(folder))
    write_jsonl(table, [{"file": "a.png"}])
    said = refused(lambda: rows_of(folder))
    assert f"{table}:0: expected a picture's name in column 'file_name'" in said
    table.write_text("{")
    assert "line 1 is not JSON" in refused(lambda: rows_of(folder))
    write_jsonl(table, rows[:1])
    write_csv(folder / "metadata.csv", rows[:1])
    assert "metadata.jsonl and metadata.csv" in refused(lambda: rows_of(folder))


def test_folders_of_several_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, ["a.png"])
    (folder / "README.md").write_text("about")
    said = refused(lambda: rows_of(folder))
    assert "found both (1 pictures, and README.md)" in said
    assert "set format to images" in said
    assert len(rows_of(folder, format="images")) == 1
    assert "not for pictures" in refused(lambda: rows_of(folder / "a.png", messages_column="m"))
    write_jsonl(folder / "rows.jsonl", [{"file": "a.png", "text": "A"}])
    (folder / "README.md").unlink()
    assert "image_column" in refused(lambda: rows_of(folder))
    (row,) = rows_of(folder, image_column="file")
    assert (row.example_id, row.text) == ("rows.jsonl:0", "A")
    assert row.image == (folder / "a.png").read_bytes()


@pytest.fixture
def ungrouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture of a folder is read by itself, to see which of them change."""
    monkeypatch.setattr(input_files, "_GROUP_LIMIT", 1)


@pytest.mark.usefixtures("ungrouped")
def test_fingerprints_follow_captions_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, [f"{i:02d}.png" for i in range(6)])
    rows = [{"file_name": f"{i:02d}.png", "text": f"t{i}"} for i in range(6)]
    write_jsonl(folder / "metadata.jsonl", rows)
    states = [prints(folder)]
    rows[2]["text"] = "changed"
    write_jsonl(folder / "metadata.jsonl", rows)
    states.append(prints(folder))
    (folder / "03.txt").write_text("beside")
    states.append(prints(folder))
    (folder / "04.png").write_bytes(encoded(pattern(9, 9)))
    states.append(prints(folder))
    assert prints(folder) == states[-1]
    assert all(before != after for before, after in pairwise(states))
    assert captions(folder)["02.png:0"] == "changed"


def test_large_folders_are_read_in_groups(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    content = encoded(pattern(2, 2))
    for number in range(700):
        (folder / f"{number:03d}.png").write_bytes(content)
        (folder / f"{number:03d}.txt").write_text(str(number))
    before = find_files(SourceConfig(path=str(folder)))
    assert 2 <= len(before) < 60
    found = [e for file in before for e in read_rows(file)]
    assert [e.text for e in found] == [str(number) for number in range(700)]
    (folder / "699.txt").write_text("changed")
    after = find_files(SourceConfig(path=str(folder)))
    assert len({f.fingerprint for f in after} - {f.fingerprint for f in before}) == 1


PICTURES = [encoded(pattern(8, 8, seed)) for seed in range(3)]
PATHS = ["pictures/0.png", "./pictures/1.png", "2.png"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures, where the paths above say."""
    (tmp_path / "pictures").mkdir()
    for path, content in zip(PATHS, PICTURES, strict=True):
        (tmp_path / path).write_bytes(content)
    return tmp_path


def shown(path: object, **fields: object) -> list[tuple[str | None, bytes | None]]:
    return [(e.text, e.image) for e in rows_of(path, **{"image_column": "image", **fields})]


EXPECTED = [("t0", PICTURES[0]), ("t1", PICTURES[1]), ("t2", PICTURES[2]), ("t3", None)]


def test_columns_of_paths(pictures: Path) -> None:
    rows = [{"text": f"t{i}", "image": p} for i, p in enumerate([*PATHS, None])]
    rows[2]["image"] = str(pictures / "2.png")
    assert shown(write_jsonl(pictures / "r.jsonl", rows)) == EXPECTED
    assert shown(write_csv(pictures / "r.csv", rows)) == EXPECTED
    assert shown(write_parquet(pictures / "r.parquet", rows)) == EXPECTED


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../0.png", "deep/../../0.png", "..\\0.png", "file:///etc/hostname",
     "https://127.0.0.1:1/a.png", "s3://bucket/a.png", "memory://pool/a.png",
     "local:///etc/hostname", "dir::file:///etc/hostname", "zip://a.png::s3://bucket/a.zip"],
)  # fmt: skip
def test_a_row_reads_nothing_out_of_its_folder(pictures: Path, name: str) -> None:
    (pictures / "table").mkdir()
    (pictures / "0.png").write_bytes(PICTURES[0])
    table = write_jsonl(pictures / "table" / "r.jsonl", [{"text": "t", "image": name}])
    told = refused(lambda: shown(table))
    assert f"expected a picture below {pictures}/table, got " in told
    assert "image_root" in told
    assert ("allow_urls" in told) == (name.partition("://")[0] in ("https", "s3", "memory"))
    (error,) = check_source(SourceConfig(path=str(table), image_column="image"))
    assert "expected a picture below" in error.message


@pytest.mark.parametrize("name", ["local:///etc/hostname", "dir::file:///etc/hostname"])
def test_an_address_that_may_be_asked_for_lies_on_no_disk_of_this_machine(
    pictures: Path, name: str
) -> None:
    table = write_jsonl(pictures / "r.jsonl", [{"text": "t", "image": name}])
    assert "expected a picture below" in refused(lambda: shown(table, allow_urls=True))


@pytest.mark.parametrize("name", ["a\0b.png", "a" * 5000 + ".png"])
def test_what_is_no_name_of_a_file_is_told(pictures: Path, name: str) -> None:
    table = write_jsonl(pictures / "r.jsonl", [{"text": "t", "image": name}])
    assert "expected a p" in refused(lambda: shown(table))
    problems = check_source(SourceConfig(path=str(table), image_column="image"))
    assert all(isinstance(problem, InputError) for problem in problems)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "data URL"])
def test_pictures_as_base64_are_told(tmp_path: Path, form: str) -> None:
    url = form == "data URL"
    said = base64.b64encode(encoded(pattern(24, 24), "AVIF" if url else form)).decode()
    value = "data:image/avif;base64," + said if url else said
    table = write_jsonl(tmp_path / "r.jsonl", [{"text": "t", "image": value}])
    for skip in ("refuse", "skip"):
        source = SourceConfig(path=str(table), image_column="image", on_damaged=skip)
        (error,) = check_source(source)
        assert f"got what looks like base64: {value[:40]!r}" in str(error)
        assert "write each picture into a file" in str(error)
        assert len(str(error)) < 400


def test_names_that_no_file_has_and_links_in_a_circle_are_not_found(pictures: Path) -> None:
    (pictures / "loop.png").symlink_to(pictures / "loop.png")
    names = [PATHS[0], "x" * 300 + ".png", "loop.png"]
    rows = [{"text": f"t{n}", "image": name} for n, name in enumerate(names)]
    table = write_jsonl(pictures / "r.jsonl", rows)
    skipping = SourceConfig(path=str(table), image_column="image", on_damaged="skip")
    assert check_source(skipping) == []
    assert shown(table, on_damaged="skip") == [("t0", PICTURES[0]), ("t1", None), ("t2", None)]
    assert "/x" in (said := refused(lambda: shown(table))) and "(File name too long)" in said
    assert names[1] not in said  # it is cut short
    table.unlink()
    said = refused(lambda: rows_of(pictures, template="a"))
    assert f"{pictures}/loop.png: expected a file that can be read" in said


def test_folders_and_addresses_are_read_where_that_is_allowed(pictures: Path) -> None:
    (pictures / "table").mkdir()
    names = ["../pictures/0.png", str(pictures / "pictures" / "1.png")]
    rows = [{"text": name, "image": name} for name in names]
    table = write_jsonl(pictures / "table" / "r.jsonl", rows)
    found = shown(table, image_root=str(pictures))
    assert [image for _, image in found] == PICTURES[:2]
    storage.write_bytes("memory://elsewhere/2.png", PICTURES[2])
    rows = [{"text": "t", "image": "memory://elsewhere/2.png"}]
    table = write_jsonl(pictures / "table" / "r.jsonl", rows)
    assert shown(table, allow_urls=True) == [("t", PICTURES[2])]


def test_columns_of_bytes(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "image": p} for i, p in enumerate([*PICTURES, None])]
    assert shown(write_parquet(tmp_path / "a.parquet", rows)) == EXPECTED
    rows = [{**row, "image": {"bytes": row["image"], "path": "x.png"}} for row in rows[:3]]
    rows += [{"text": "t3", "image": None}, {"text": "t4", "image": {"bytes": None, "path": None}}]
    got = shown(write_parquet(tmp_path / "b.parquet", rows))
    assert got == [*EXPECTED, ("t4", None)]


def test_saved_datasets(pictures: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "text": ["t0", "t1", "t2", "t3"],
        "image": [{"bytes": content, "path": None} for content in PICTURES] + [None],
    }
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(pictures / "saved")
    assert shown(pictures / "saved") == EXPECTED
    saved.to_parquet(pictures / "hub.parquet")
    assert shown(pictures / "hub.parquet") == EXPECTED
    columns["image"] = [str(pictures / path) for path in PATHS] + [None]
    pathed = datasets.Dataset.from_dict(columns, features=features)
    with (
        (pictures / "paths.arrow").open("wb") as file,
        pa.ipc.new_stream(file, pathed.data.schema) as writer,
    ):
        writer.write_table(pathed.data.table)
    assert shown(pictures / "paths.arrow") == EXPECTED


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_picture_that_changes_is_noticed(pictures: Path, kind: str) -> None:
    rows = [{"text": f"t{i}", "image": p} for i, p in enumerate(PATHS)]
    writer = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[kind]
    table = writer(pictures / f"r.{kind}", rows)
    before = prints(table, image_column="image")
    assert prints(table, image_column="image") == before
    unread = prints(table, text_column="text")
    (pictures / PATHS[1]).write_bytes(encoded(pattern(8, 8, 9)))
    after = prints(table, image_column="image")
    assert after != before
    (pictures / PATHS[1]).unlink()
    assert prints(table, image_column="image") not in (before, after)
    assert prints(table, text_column="text") == unread


def test_rows_whose_picture_cannot_be_had(pictures: Path) -> None:
    table = write_jsonl(
        pictures / "r.jsonl", [{"text": "a", "image": PATHS[0]}, {"text": "b", "image": "no.png"}]
    )
    said = refused(lambda: shown(table))
    assert f"{table}:1: expected a picture's file at {pictures}/no.png (No such file" in said
    assert shown(table, on_damaged="skip")[1] == ("b", None)
    write_jsonl(table, [{"text": "a", "image": 3}])
    assert f"{table}:0: expected a picture (its file's bytes" in refused(lambda: shown(table))
    write_jsonl(table, [{"text": "a", "image": "pictures"}])
    assert "Is a directory" in refused(lambda: shown(table))
    assert "names column 'imgae'" in refused(lambda: shown(table, image_column="imgae"))


def wds(tmp_path: Path, members: dict[str, bytes], name: str = "s.tar") -> Path:
    (tmp_path / name).write_bytes(tar_of(members))
    return tmp_path / name


SAMPLES = {
    "x/0.png": PICTURES[0],
    "x/0.txt": b"zero",
    "x/0.json": b'{"licence": "CC0", "text": "of json"}',
    "x/0.cls": b"7",
    "x/1.5.JPG": PICTURES[1],  # the key ends at the first dot
    "x/1.caption": "eins ä".encode(),
    "y/1.json": b'{"text": "of json"}',
    "y/1.jpg": PICTURES[1],
    "2.webp": PICTURES[2],
    "2.seg.png": PICTURES[0],
}


def test_webdataset(tmp_path: Path) -> None:
    path = wds(tmp_path, SAMPLES)
    got = rows_of(path)
    assert [(e.example_id, e.text, e.image) for e in got] == [
        ("s.tar:0", "zero", PICTURES[0]),
        ("s.tar:1", "eins ä", None),
        ("s.tar:2", "of json", PICTURES[1]),
        ("s.tar:3", None, PICTURES[2]),
    ]
    keyed = rows_of(path, id_column="__key__", template="{licence} {cls}")
    assert [(e.example_id, e.text) for e in keyed] == [
        ("x/0", "CC0 7"),
        ("x/1", None),
        ("y/1", None),
        ("2", None),
    ]
    assert rows_of(path, image_column="seg.png")[3].image == PICTURES[0]
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [e.image for e in rows_of(packed)] == [e.image for e in got]
    assert {e.text for e in rows_of(path, template="a dog")} == {"a dog"}


def test_webdataset_errors(tmp_path: Path) -> None:
    whole = tar_of(SAMPLES)
    path = tmp_path / "s.tar"
    ends = [512 + (len(c) + 511) // 512 * 512 for c in SAMPLES.values()]
    within = [100, 700, ends[0], ends[0] + 100, sum(ends) - 600, sum(ends)]
    for length in within:
        path.write_bytes(whole[:length])
        said = refused(lambda: rows_of(path))
        assert f"{path}: the file is damaged or truncated" in said, length
    path.write_bytes(b"no archive at all" * 99)
    assert "no tar archive at byte 0" in refused(lambda: rows_of(path))
    path.write_bytes(gzip.compress(whole)[:-200])
    path.rename(tmp_path / "s.tar.gz")
    assert "damaged or truncated" in refused(lambda: rows_of(tmp_path / "s.tar.gz"))
    for members, said in (
        ({"a.jpg": b"x", "a.png": b"x"}, "one picture a row, got jpg and png"),
        ({"a.jpg": b"x", "a.JPG": b"x"}, "one member 'jpg' a row, got two"),
        ({"a.jpg": b"x", "a.json": b"{"}, "not JSON"),
        ({"a.jpg": b"x", "a.json": b"[]"}, "a JSON list"),
        ({"a.jpg": b"x", "a.txt": b"\xe4"}, "UTF-8 in 'text', got 0xe4 at byte 0"),
    ):
        path = wds(tmp_path, {"0.jpg": b"x", "0.txt": b"t", **members})
        assert f"{path}:1 (a): " in refused(lambda: rows_of(path))  # noqa: B023
        assert said in refused(lambda: rows_of(path))  # noqa: B023
    path = wds(tmp_path, {"0.txt": b"a"})
    assert "names column 'image', which" in refused(lambda: rows_of(path))
    said = refused(lambda: rows_of(wds(tmp_path, SAMPLES), template="{license}"))
    assert "did you mean 'licence'" in said


def test_a_path_among_pictures_of_a_table_is_told(tmp_path: Path) -> None:
    """What a path names is in the fingerprint only where the first rows have paths."""
    inside = [{"image": {"bytes": PICTURES[0], "path": None}} for _ in range(20)]
    (tmp_path / "a.png").write_bytes(PICTURES[1])
    beside = {"image": {"bytes": None, "path": "a.png"}}
    mixed = write_parquet(tmp_path / "mixed.parquet", [*inside, beside])
    said = refused(lambda: rows_of(mixed, image_column="image", template="a"))
    assert f"{mixed}:20: expected a picture in the table, as its first rows have them" in said
    named = write_parquet(tmp_path / "named.parquet", [beside, *inside])
    assert len(rows_of(named, image_column="image", template="a")) == 21


def test_a_column_that_was_added_behind_makes_no_rows(tmp_path: Path) -> None:
    members = {f"{n}.{end}": end.encode() for n in range(3) for end in ("jpg", "txt")}
    late = {f"{n}.cls": b"7" for n in range(3)}
    path = wds(tmp_path, {**members, **late})
    assert [(e.example_id, e.text) for e in rows_of(path)] == [
        (f"s.tar:{n}", "txt") for n in range(3)
    ]
    alone = rows_of(wds(tmp_path, {**members, "3.cls": b"7"}))
    assert [e.text for e in alone] == ["txt"] * 3 + [None]  # a row that lacks what is wanted


def test_members_of_a_row_that_lie_apart_are_told(tmp_path: Path) -> None:
    ends, keys = ("jpg", "txt"), [f"{n:03d}" for n in range(300)]
    apart = {f"{key}.{end}": end.encode() for end in ends for key in keys}
    path = wds(tmp_path, apart)
    said = refused(lambda: rows_of(path))
    assert f"{path}:300 (000): expected the members of a row one after another, got 000.txt" in said
    assert "--sort=name" in said
    assert sum(row.image is not None for row in rows_of(path, template="a dog")) == 300
    assert len(rows_of(wds(tmp_path, dict(sorted(apart.items()))))) == 300
    first = {"0.jpg": PICTURES[0], "0.txt": b"a", "1.jpg": PICTURES[1], "1.txt": b"b"}
    path.write_bytes(tar_of(first)[: 4 * 1024] + tar_of({"0.jpg": PICTURES[2], "0.txt": b"c"}))
    assert [row.text for row in rows_of(path)] == ["a", "b", "c"]  # a further row of the key


def test_names_with_dots_are_told(tmp_path: Path) -> None:
    members = {f"a.{key}.{end}": b"x" for key in "bc" for end in ("txt", "jpg")}
    said = refused(lambda: rows_of(wds(tmp_path, members)))
    assert "got column 'b.jpg': a key ends at the first dot of a name" in said
    assert "a_b.jpg, not a.b.jpg" in said
    path = wds(tmp_path, {"a.b.jpg": PICTURES[0], "a.txt": b"t"})
    assert [(e.text, e.image) for e in rows_of(path, image_column="b.jpg")] == [("t", PICTURES[0])]


def test_joined_archives_are_read_to_the_end(tmp_path: Path) -> None:
    archives = [
        tar_of({"0.png": PICTURES[n], "0.txt": text}) for n, text in enumerate((b"a", b"b"))
    ]
    plain, packed = tmp_path / "s.tar", tmp_path / "s.tar.gz"
    plain.write_bytes(b"".join(archives))
    packed.write_bytes(b"".join(map(gzip.compress, archives)))
    for path in (plain, packed):
        got = [(e.text, e.image) for e in rows_of(path)]
        assert got == [("a", PICTURES[0]), ("b", PICTURES[1])]
    within = len(PICTURES[1]) // 512 * 512 + 1024  # the second's picture, and no more of it
    for rest in (archives[1][:within], b"no archive at all" * 99, archives[1][:100]):
        plain.write_bytes(archives[0] + rest)
        assert "damaged or truncated" in refused(lambda: rows_of(plain))


def test_webdataset_is_streamed(tmp_path: Path) -> None:
    large = os.urandom(1 << 20)
    path = wds(tmp_path, {f"{i:03d}.{end}": large for i in range(40) for end in ("jpg", "npy")})
    file = only(SourceConfig(path=str(path), template="a"))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(file)) == 40
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def test_headers_of_an_archive_are_not_kept(tmp_path: Path) -> None:
    path = wds(tmp_path, {f"{i}.{end}": b"x" for i in range(3000) for end in ("jpg", "txt")})
    file = only(SourceConfig(path=str(path)))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(file)) == 3000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_few_pictures_of_a_table_are_in_memory(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "a", "image": os.urandom(1 << 20)} for _ in range(100)]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"r.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, use_dictionary=False, row_group_size=10)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    del rows, table
    file = only(SourceConfig(path=str(path), image_column="image"))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    most = 0
    for _ in read_rows(file):
        most = max(most, pa.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 45e6
    assert most < 45e6


@pytest.mark.usefixtures("ungrouped")
def test_remote_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = fsspec.filesystem("memory")
    try:
        for number in range(40):
            remote.pipe_file(f"/pool/p/{number:02d}.png", PICTURES[number % 3])
            remote.pipe_file(f"/pool/p/{number:02d}.txt", str(number).encode())
        got = rows_of("memory://pool/p")
        assert [e.text for e in got] == [str(number) for number in range(40)]
        assert got[4].image == PICTURES[1]
        rows = [{"text": "t", "image": f"p/{i:02d}.png"} for i in range(40)]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        remote.pipe_file("/pool/r.jsonl", content)
        table = "memory://pool/r.jsonl"
        assert [
            e.image for e in rows_of(table, image_column="image", image_root="memory://pool/p")
        ] == [e.image for e in got]
        first = (
            prints(table, image_column="image", image_root="memory://pool/p"),
            prints("memory://pool/p"),
        )
        remote.pipe_file("/pool/p/39.png", PICTURES[1] + b" ")  # listed, not asked for one by one
        second = (
            prints(table, image_column="image", image_root="memory://pool/p"),
            prints("memory://pool/p"),
        )
        assert first[0] != second[0]
        assert first[1][:-1] == second[1][:-1]
        assert first[1][-1] != second[1][-1]
        monkeypatch.setattr(fingerprints, "_ASKED_ONE_BY_ONE", 1000)
        assert (
            prints(table, image_column="image", image_root="memory://pool/p"),
            prints("memory://pool/p"),
        ) == second
        remote.pipe_file("/pool/s.tar", tar_of(SAMPLES))
        assert rows_of("memory://pool/s.tar")[0].image == PICTURES[0]
        far = write_jsonl(
            tmp_path / "far.jsonl", [{"text": "t", "image": "memory://pool/p/00.png"}]
        )
        assert shown(far, image_root="memory://pool") == [("t", PICTURES[0])]
    finally:
        remote.rm("/pool", recursive=True)


def test_check_looks_at_the_first_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, ["a.png", "b.png"])
    source = SourceConfig(path=str(folder), template="a dog")
    monkeypatch.setattr("albat_core.pictures.prepare_picture", None)  # nothing is decoded
    assert check_source(source) == []
    (error,) = check_source(SourceConfig(path=str(folder)))
    assert "expected captions, none of the 2 pictures has one" in str(error)
    refusing = SourceConfig(path=str(folder), on_null="refuse")
    assert "expected a caption" in str(check_source(refusing)[0])
    (folder / "b.png").write_bytes(b"<html>")
    (error,) = check_source(source)
    assert f"{folder}/b.png:0: expected a picture (PNG" in str(error)
    assert check_source(source.model_copy(update={"on_damaged": "skip"})) == []
    table = write_jsonl(tmp_path / "r.jsonl", [{"text": "t", "image": "p/b.png"}])
    (error,) = check_source(SourceConfig(path=str(table), image_column="image"))
    assert f"{table}:0 ({folder}/b.png): expected a picture" in str(error)


def test_check_refuses_a_source_of_which_all_pictures_are_damaged(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(4)]
    for name in names:
        (tmp_path / name).write_bytes(b"<html>")
    source = SourceConfig(path=str(tmp_path), template="a dog", on_damaged="skip")
    (error,) = check_source(source)
    assert "got 4 rows, 4 of them damaged" in str(error)
    write_pictures(tmp_path, names[:1])
    assert check_source(source) == []
    rows = [{"text": n, "image": name} for n, name in enumerate(names)]
    table = write_jsonl(tmp_path / "r.jsonl", rows)
    columns = {"image_column": "image", "text_column": "text"}
    (error,) = check_source(SourceConfig(path=str(table), on_damaged="skip", **columns))
    assert "every row has a number" in str(error)


def test_pictures_with_captions_may_come_late(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, [f"{i:02d}.png" for i in range(20)])
    (folder / "19.txt").write_text("the only one")
    assert check_source(SourceConfig(path=str(folder))) == []


def test_a_quoted_table_with_line_ends(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, ["a, b.png"])
    text = io.StringIO()
    csv.writer(text).writerows([["file_name", "text"], ["a, b.png", 'two\n"lines"']])
    (folder / "metadata.csv").write_text(text.getvalue())
    assert captions(folder) == {"a, b.png:0": 'two\n"lines"'}
