"""Pictures through shards, split and mixture: cut, counted, bounded, and opened by `datasets`."""

import gc
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from albat_core.pictures import PictureConfig, picture_pixels, prepare_picture
from albat_core.records import tables
from albat_core.records.examples import (
    EXAMPLE_SCHEMA,
    Example,
    examples_to_table,
    table_to_examples,
)
from albat_core.records.mixtures import MIXTURE_SCHEMA, Mixture, read_mixture
from albat_core.records.selections import SELECTION, SELECTION_SCHEMA
from albat_core.records.shards import iterate_part, parts_of, read_examples
from albat_core.records.splits import TRAIN, read_role
from albat_core.records.tables import write_table
from albat_core.sources.config import SourceConfig
from albat_core.stages import mix as dataset
from albat_core.stages import shard as corpus
from albat_core.stages.mix import MixtureConfig, write_mixture
from albat_core.stages.shard import refuse_barren
from albat_core.stages.split import SplitConfig, split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.core.picture_files import encoded, pattern, tar_of, write_pictures
from tests.core.row_files import only, refused, write_jsonl
from tests.core.test_corpus import OneByOne, Sharder

SIZE = PictureConfig(resolution=(16, 24))


def split_pictures(example: Example) -> list[Example]:
    """Cut as a backbone of small pictures would."""
    assert example.image is not None
    png, frame = prepare_picture(example.image, SIZE, example.example_id)
    return [replace(example, image=png, frame=frame)]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sharder]:
    monkeypatch.setattr(corpus, "open_splitter", lambda _config: OneByOne(split_pictures))
    monkeypatch.setattr(corpus, "input_fingerprint", lambda config: f"pictures-{config.path}")
    return Sharder(tmp_path / "root")


def test_digest_covers_picture_and_frame() -> None:
    text = Example("a", "a", "s", text="t")
    assert text.digest() == "0668e9e41bc4ae322676156c39ea4af9"  # of before there were pictures
    picture = replace(text, image=b"x", frame=(1, 2, 3, 4))
    others = [
        text,
        picture,
        replace(picture, image=b"y"),
        replace(picture, frame=(1, 2, 3, 5)),
        replace(picture, frame=None),
        replace(picture, text=None),
    ]
    assert len({example.digest() for example in others}) == len(others)
    assert replace(picture, example_id="b", source="r").digest() == picture.digest()


def test_examples_survive_a_table() -> None:
    examples = [
        Example("a", "d", "s", text="t", image=b"\x89\0", frame=(1, 2, 3, 4)),
        Example("b", "d", "s", messages=({"role": "user", "content": "c"},)),
    ]
    table = examples_to_table(examples)
    assert table.schema.equals(EXAMPLE_SCHEMA)
    assert table_to_examples(table) == examples
    assert table_to_examples(table.slice(1).drop_columns(["image", "frame"])) == examples[1:]


def test_row_groups_of_pictures_are_small(tmp_path: Path) -> None:
    rows = [Example(str(i), "d", "s", text="t", image=bytes(300_000)) for i in range(40)]
    write_table(examples_to_table(rows), tmp_path / "a.parquet")
    write_table(examples_to_table([replace(r, image=None) for r in rows]), tmp_path / "b.parquet")
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.num_row_groups == 7  # of 6 rows, 2 MiB
    with pq.ParquetFile(tmp_path / "b.parquet") as file:
        assert file.num_row_groups == 1


BAD = b"<html>"


def rows_of_table(folder: Path) -> Path:
    content = write_pictures(folder, ["0.png", "1.png", "2.png", "3.png"], side=32)
    assert len(content) == 4
    (folder / "bad.png").write_bytes(BAD)
    rows = [
        {"text": "t0", "image": "0.png", "i": "fine"},
        {"text": " ", "image": "1.png", "i": "no caption"},
        {"text": "t2", "image": None, "i": "no picture"},
        {"text": "t3", "image": "bad.png", "i": "bad"},
        {"text": "t4", "image": "gone.png", "i": "gone"},
        {"text": "t5", "image": "3.png", "i": "last"},
    ]
    return write_jsonl(folder / "r.jsonl", rows)


def test_shards_hold_pictures_cut_to_size(tmp_path: Path, shard: Sharder) -> None:
    table = rows_of_table(tmp_path / "p")
    columns = {"image_column": "image", "id_column": "i"}
    manifest, examples = shard(table, on_damaged="skip", **columns)
    facts = manifest.facts
    assert [(e.example_id, e.text, e.frame) for e in examples] == [
        ("fine", "t0", (32, 32, 4, 0)),  # to 24 x 24, of which 16 rows
        ("last", "t5", (32, 32, 4, 0)),
    ]
    expected = prepare_picture((tmp_path / "p" / "3.png").read_bytes(), SIZE, "")[0]
    assert examples[1].image == expected
    assert picture_pixels(expected).shape == (16, 24, 3)
    assert {name: facts[f"{name}_ids"] for name in ("null", "uncaptioned", "damaged")} == {
        "null": ["no picture"],
        "uncaptioned": ["no caption"],
        "damaged": ["bad", "gone"],
    }
    assert (facts["rows"], facts["null_rows"], facts["uncaptioned_rows"]) == (6, 1, 1)
    assert (facts["damaged_rows"], facts["unfit_rows"], facts["split_rows"]) == (2, 0, 0)

    said = refused(lambda: shard(table, **columns))
    assert f"{table}:3 ({tmp_path}/p/bad.png): expected a picture (PNG" in said
    assert "begins with b'<html>'" in said
    columns["on_null"] = "refuse"
    assert f"{table}:1: expected a caption" in refused(lambda: shard(table, **columns))
    (tmp_path / "p" / "r.jsonl").write_text('{"text": "t", "image": null, "i": "0"}\n')
    assert f"{table}:0: expected a picture, the row" in refused(lambda: shard(table, **columns))


def test_files_without_a_usable_picture(tmp_path: Path, shard: Sharder) -> None:
    archive = tmp_path / "s.tar"
    archive.write_bytes(tar_of({"0.jpg": BAD, "0.txt": b"t", "1.png": encoded(pattern(9, 9))}))
    source = SourceConfig(path=str(archive), on_damaged="skip")
    refs = [shard.make(only(source))]
    said = refused(lambda: refuse_barren(shard.store, source, refs))
    assert "got 2 rows, 1 of them without caption, 1 of them damaged" in said
    folder = tmp_path / "p"
    write_pictures(folder, ["a.png"])
    assert shard(folder)[1] == []  # one picture of many may have no caption
    assert shard(folder, template="a dog")[1][0].text == "a dog"


def test_pictures_outside_the_share_are_not_fetched(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"text": "t", "image": f"{i}.png", "i": i} for i in range(200)]
    table = write_jsonl(tmp_path / "r.jsonl", rows)
    fields = {"image_column": "image", "id_column": "i", "share": 0.1}
    manifest, _ = shard(table, on_damaged="skip", **fields)
    chosen = manifest.facts["damaged_rows"]  # none of them is there
    assert 5 < chosen < 50
    assert manifest.facts["left_out_rows"] == 200 - chosen


def test_parts_are_closed_by_their_bytes(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {}
    for number in range(20):
        members |= {f"{number}.png": encoded(pattern(16, 24, number)), f"{number}.txt": b"t"}
    archive = tmp_path / "s.tar"
    archive.write_bytes(tar_of(members))
    one = len(members["0.png"])
    monkeypatch.setattr(corpus, "_PART_BYTES", int(5.5 * one))
    ref = shard.make(only(SourceConfig(path=str(archive))))
    parts = parts_of(shard.store, [ref])
    assert [part.rows for part in parts] == [6, 6, 6, 2]
    rows = [e for part in parts for batch in iterate_part(shard.store, part, 4) for e in batch]
    assert [e.example_id for e in rows] == [f"s.tar:{number}" for number in range(20)]
    np.testing.assert_array_equal(picture_pixels(rows[7].image), pattern(16, 24, 7))
    addresses = [parts[2].address, parts[0].address]
    assert read_examples(shard.store, addresses, [5, 1]) == [rows[17], rows[1]]


class Made:
    """An adaptation set of 12 pictures and a selection of 150 of a corpus."""

    def __init__(self, folder: Path, shard: Sharder) -> None:
        self.store = shard.store
        self.runtime = Runtime(root=shard.store.root)
        refs = []
        for name, count in (("own", 15), ("pool", 160)):
            members = {}
            for number in range(count):
                members[f"{name}{number}.png"] = encoded(pattern(16, 24, 1000 * count + number))
                members[f"{name}{number}.txt"] = f"caption {number}".encode()
            (folder / f"{name}.tar").write_bytes(tar_of(members))
            file = only(SourceConfig(path=str(folder / f"{name}.tar"), id_column="__key__"))
            refs.append(shard.make(file))
        self.adaptation = split_adaptation([refs[0]], [], SplitConfig(folds=3), 0, self.runtime)
        (part,) = parts_of(self.store, [refs[1]])
        self.order = np.random.default_rng(0).permutation(160)[:150]
        rows = pa.Table.from_pylist(
            [
                {
                    "example_id": f"pool{row}",
                    "source": "pool",
                    "shard": part.address,
                    "row": int(row),
                    "turn": 0,
                    "weight": 1 / 150,
                }
                for row in self.order
            ],
            schema=SELECTION_SCHEMA,
        )
        self.selection = self.produce(rows)

    def produce(self, rows: pa.Table) -> ArtifactRef:
        def build(folder: Path) -> Built:
            write_table(rows, folder / SELECTION)
            return Built(rows=rows.num_rows, facts={})

        return ArtifactStore(self.runtime.root).produce("selection", 1, {}, {}, build)

    def mixture(self, **fields: object) -> tuple[Path, Mixture]:
        ref = write_mixture(
            self.adaptation, self.selection, 0.5, MixtureConfig(**fields), self.runtime
        )
        return self.store.folder(ref), read_mixture(self.store, ref)


@pytest.fixture
def made(tmp_path: Path, shard: Sharder) -> Made:
    return Made(tmp_path, shard)


def test_mixture_is_written_in_pieces_and_read_back(made: Made) -> None:
    _, mixture = made.mixture()
    assert list(mixture.adaptation) == read_role(made.store, made.adaptation, TRAIN)
    assert [e.example_id for e in mixture.backbone] == [f"pool{row}" for row in made.order]
    assert mixture.weights == pytest.approx(np.full(150, 1 / 150))
    for example, row in zip(mixture.backbone, made.order, strict=True):
        assert example.text == f"caption {row}"
        assert example.frame == (16, 24, 0, 0)
        np.testing.assert_array_equal(picture_pixels(example.image), pattern(16, 24, 160_000 + row))


def test_files_are_bounded_by_rows_and_bytes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mixture = made.mixture(shard_rows=40)
    total = len(mixture.adaptation) + 150
    files = sorted((folder / "data").glob("*"))
    counts = [pq.read_metadata(file).num_rows for file in files]
    assert counts == [40, 40, 40, total - 120]
    assert files[-1].name == "train-00003-of-00004.parquet"
    one = len(mixture.backbone[0].image)
    monkeypatch.setattr(dataset, "_FILE_BYTES", 10 * one)
    monkeypatch.setattr(tables, "_GROUP_BYTES", 3 * one)
    folder, again = made.mixture(shard_rows=41)
    assert list(again.backbone) == list(mixture.backbone)
    files = sorted((folder / "data").glob("*"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == total
    for file in files[:-1]:
        assert 5 <= pq.read_metadata(file).num_rows <= 12
        assert pq.read_metadata(file).row_group(0).num_rows <= 3


@pytest.mark.parametrize("way", ["folder", "files"])
def test_opens_with_datasets_as_images(made: Made, tmp_path: Path, way: str) -> None:
    datasets = pytest.importorskip("datasets")
    folder, mixture = made.mixture(shard_rows=60)
    cache = str(tmp_path / "cache")
    if way == "folder":
        rows = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    else:
        files = sorted(map(str, (folder / "data").glob("*.parquet")))
        rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows.column_names == MIXTURE_SCHEMA.names
    own = len(mixture.adaptation)
    row = rows[own + 70]
    assert isinstance(row["image"], Image.Image)
    expected = pattern(16, 24, 160_000 + made.order[70])
    np.testing.assert_array_equal(np.asarray(row["image"]), expected)
    assert row["text"] == f"caption {made.order[70]}"
    assert row["frame"] == [16, 24, 0, 0]
    assert sum(rows["weight"]) == pytest.approx(1)
    stored = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    assert Image.open(io.BytesIO(stored)).size == (24, 16)
    assert "`image` (PNG" in (folder / "README.md").read_text()


def test_mixture_of_pictures_is_not_in_memory_whole(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    asked = dataset.read_examples

    def counting(*args: object) -> list[Example]:
        nonlocal most
        found = asked(*args)
        gc.collect()
        most = max(most, sum(type(o) is Example for o in gc.get_objects()))
        return found

    monkeypatch.setattr(dataset, "read_examples", counting)
    monkeypatch.setattr(dataset, "_PICTURES_AT_ONCE", 10)
    gc.freeze()  # all that is there before need not be looked through each time
    try:
        write_mixture(made.adaptation, made.selection, 0.5, MixtureConfig(), made.runtime)
    finally:
        gc.unfreeze()
    assert 10 <= most < 100
