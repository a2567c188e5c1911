"""Embeddings that were computed elsewhere: files of them read, matched by id, and checked."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.errors import DimensionMismatchError
from albat_core.records.adopted import match_notes
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.shards import Part
from albat_core.records.tables import write_table
from albat_core.records.vectors import load_vectors
from albat_core.sources.vector_checks import check_vectors
from albat_core.sources.vectors import VectorSource, find_vectors, locate_vectors, read_vectors
from albat_core.stages.adopt import adopt_part, find_adopted, keep_vectors, match_vectors
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.core.row_files import refused, write_jsonl

D = 6
FLOATS = pa.list_(pa.float32())


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def save(path: Path, ids: list, vectors: np.ndarray | list, kind: pa.DataType) -> Path:
    column = pa.array([None if v is None else [*v] for v in vectors], kind)
    pq.write_table(pa.table({"id": ids, "embedding": column}), path, row_group_size=7)
    return path


def read(source: VectorSource) -> dict[str, np.ndarray]:
    """Every vector by its id."""
    found: dict[str, np.ndarray] = {}
    for file in find_vectors(source):
        for ids, vectors in read_vectors(file):
            assert vectors.dtype in (np.float16, np.float32)
            found |= dict(zip(ids, vectors, strict=True))
    return found


def parts_of(runtime: Runtime, name: str, ids: list[str], size: int = 16) -> list[Part]:
    """Shards of rows with these ids, in parts of some."""
    store, made = ArtifactStore(runtime.root), []
    blocks = [ids[start : start + size] for start in range(0, len(ids), size)]

    def build(folder: Path) -> Built:
        for number, some in enumerate(blocks):
            rows = [Example(each, each, name, text=f"text of {each}") for each in some]
            write_table(examples_to_table(rows), folder / f"part-{number}.parquet")
        return Built(rows=len(ids))

    ref = store.produce("shards", 1, {"name": name}, {}, build)
    digests = {file.path: file.sha256 for file in store.manifest(ref).files}
    for number, some in enumerate(blocks):
        part = f"part-{number}.parquet"
        made.append(Part(shards=ref, name=part, rows=len(some), sha256=digests[part]))
    return made


def kept(runtime: Runtime, path: Path) -> list[ArtifactRef]:
    return [keep_vectors(file, runtime) for file in find_vectors(VectorSource(path=str(path)))]


def adopted(
    runtime: Runtime, parts: list[Part], matches: ArtifactRef, vectors: list[ArtifactRef]
) -> list[ArtifactRef]:
    """Embeddings of each part."""
    found, start = [], 0
    facts = ArtifactStore(runtime.root).manifest(matches).facts
    for part, numbers in zip(parts, facts["files"], strict=True):
        files = {number: vectors[number] for number in numbers}
        (before,) = find_adopted([part], [files], runtime)
        made = adopt_part(part, "", start, matches, files, runtime)
        assert made.reused == (before is not None)
        assert find_adopted([part], [files], runtime) == [made]
        found.append(made.embeddings)
        start += part.rows
    return found


# Reading


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float16()),
        pa.list_(pa.float16(), D),
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), D),
        pa.large_list(pa.float64()),
    ],
    ids=str,
)
def test_parquet_is_read_as_it_was_written(tmp_path: Path, kind: pa.DataType) -> None:
    vectors = drawn(20)
    stored = np.float16 if kind.value_type == pa.float16() else np.float32
    path = save(tmp_path / "v.parquet", [*range(20)], vectors.astype(stored), kind)
    found = read(VectorSource(path=str(path)))
    assert [*found] == [str(n) for n in range(20)]  # as ids of rows are
    assert np.array_equal([*found.values()], vectors.astype(stored))
    assert next(iter(found.values())).dtype == stored


@pytest.mark.parametrize("form", ["txt", "jsonl", "parquet", "csv"])
@pytest.mark.parametrize("stored", ["<f2", "<f4", ">f4", "<f8"])
def test_arrays_of_numpy_have_their_ids_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, stored: str
) -> None:
    monkeypatch.setattr("albat_core.sources.vectors._BLOCK_BYTES", 100)
    ids, vectors = [f"row {n}" for n in range(50)], drawn(50)
    np.save(tmp_path / "v.npy", vectors.astype(stored))
    path = tmp_path / f"ids.{form}"
    if form == "jsonl":
        write_jsonl(path, [{"key": name} for name in ids])
    elif form == "parquet":
        pq.write_table(pa.table({"key": ids}), path)
    else:
        path.write_text("key\n" * (form == "csv") + "\n".join(ids) + "\n")
    found = read(VectorSource(path=str(tmp_path / "v.npy"), ids=str(path), id_column="key"))
    assert [*found] == ids
    expected = vectors.astype(stored).astype(np.float16 if stored == "<f2" else np.float32)
    assert np.array_equal([*found.values()], expected)


def test_several_arrays_are_paired_with_ids_by_order_of_name(tmp_path: Path) -> None:
    vectors = drawn(20)
    for number in range(2):
        np.save(tmp_path / f"v{number}.npy", vectors[number * 10 :][:10])
        lines = "\n".join(str(n) for n in range(number * 10, number * 10 + 10))
        (tmp_path / f"v{number}.txt").write_text(lines)
    source = VectorSource(path=str(tmp_path / "*.npy"), ids=str(tmp_path / "*.txt"))
    found = read(source)
    assert [*found] == [str(n) for n in range(20)]
    assert np.array_equal([*found.values()], vectors)
    (tmp_path / "v1.txt").unlink()
    assert "a file of ids for each of 2 .npy files, got 1" in refused(lambda: read(source))


def test_numbers_in_names_of_arrays_and_ids_are_sorted_by_size(tmp_path: Path) -> None:
    for number in (1, 2, 10, 11):
        np.save(tmp_path / f"part_{number}.npy", np.full((1, 2), number, np.float32))
        (tmp_path / f"part_{number}_ids.txt").write_text(f"{number}\n")
    source = VectorSource(path=f"{tmp_path}/*.npy", ids=f"{tmp_path}/*_ids.txt")
    pairs = [(Path(f.uri).stem, Path(str(f.ids)).stem) for f in locate_vectors(source)]
    assert pairs == [(f"part_{n}", f"part_{n}_ids") for n in (1, 2, 10, 11)]


def test_what_nemo_curator_writes_is_read_as_it_is(tmp_path: Path) -> None:
    # its ParquetWriter is pandas.DataFrame.to_parquet, and its embedding stages fill `embeddings`
    ids, vectors = [f"doc_id-{n:010d}" for n in range(4)], drawn(4)
    columns = {"id": ids, "text": ids, "embeddings": [*vectors]}
    pd.DataFrame(columns).to_parquet(tmp_path / "0a1b2c.parquet", index=None)
    found = read(VectorSource(path=str(tmp_path), vector_column="embeddings"))
    assert [*found] == ids
    assert np.array_equal([*found.values()], vectors)


def test_vectors_lie_wherever_a_corpus_may(tmp_path: Path) -> None:
    vectors = drawn(20)
    save(tmp_path / "a.parquet", [*range(10)], vectors[:10], FLOATS)
    np.save(tmp_path / "b.npy", vectors[10:])
    (tmp_path / "b.txt").write_text("\n".join(map(str, range(10, 20))))
    memory = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        memory.pipe(f"/{tmp_path.name}/{file.name}", file.read_bytes())
    folder = f"memory://{tmp_path.name}"
    found = read(
        VectorSource(path=(f"{folder}/a.parquet", f"{folder}/*.npy"), ids=f"{folder}/b.txt")
    )
    assert [*found] == [str(n) for n in range(20)]
    assert np.array_equal([*found.values()], vectors)


def test_what_is_no_file_of_vectors_is_refused(tmp_path: Path) -> None:
    def told(path: str, **fields: str) -> str:
        return refused(lambda: read(VectorSource(path=str(tmp_path / path), **fields)))

    save(tmp_path / "v.parquet", ["a", "b"], drawn(2), FLOATS)
    pq.write_table(pa.table({"id": ["a"], "embedding": [1.0]}), tmp_path / "flat.parquet")
    save(tmp_path / "null.parquet", ["a"], [None], FLOATS)
    save(tmp_path / "blank.parquet", ["a", None], drawn(2), FLOATS)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "v.parquet").read_bytes()[:300])
    np.save(tmp_path / "v.npy", drawn(9))
    np.save(tmp_path / "whole.npy", np.arange(4).reshape(2, 2))
    content = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-5])
    (tmp_path / "none.npy").write_bytes(b"no array at all")
    (tmp_path / "ids.txt").write_text("\n".join("abcdefgh"))
    (tmp_path / "nine.txt").write_text("\n".join("abcdefghi"))
    ids = {"ids": str(tmp_path / "ids.txt")}
    assert "vector_column names column 'vector'" in told("v.parquet", vector_column="vector")
    assert "expected lists of floats" in told("flat.parquet")
    assert "expected vectors, the first 1 are null" in told("null.parquet")
    assert "blank.parquet:1" in told("blank.parquet")
    assert "damaged or truncated" in told("cut.parquet")
    assert "as many ids as vectors, got 8 for 9" in told("v.npy", **ids)
    assert "for each of 1 .npy files, got 0" in told("v.npy")
    assert "got int64 (2, 2)" in told("whole.npy", **ids)
    nine = {"ids": str(tmp_path / "nine.txt")}
    assert "damaged or truncated (EOFError" in told("cut.npy", **nine)
    assert "expected an array of NumPy" in told("none.npy", **ids)
    assert "expected vectors as .parquet or .npy, got ids.txt" in told("ids.txt")
    assert "expected files, found none" in told("nowhere/*.npy")
    save(tmp_path / "other.parquet", ["a", "b"], [[1.0, 2.0], [1.0]], FLOATS)
    with pytest.raises(DimensionMismatchError, match="of d=2, as the first has, got d=1 of id 'b'"):
        read(VectorSource(path=str(tmp_path / "other.parquet")))


def test_a_fingerprint_is_of_vectors_ids_and_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", drawn(2))
    (tmp_path / "ids.txt").write_text("a\nb")
    source = VectorSource(path=str(tmp_path / "v.npy"), ids=str(tmp_path / "ids.txt"))
    prints = []

    def note(**change: str) -> None:
        prints.append(find_vectors(source.model_copy(update=change))[0].fingerprint)

    note()
    note(id_column="key")
    (tmp_path / "ids.txt").write_text("b\na")
    note()
    np.save(tmp_path / "v.npy", drawn(2, seed=1))
    note()
    assert len({*prints}) == 4


# Matching


IDS = [f"row-{n}" for n in range(40)]
Matched = Callable[[list, np.ndarray], tuple[ArtifactRef, list[ArtifactRef]]]


@pytest.fixture
def parts(runtime: Runtime) -> list[Part]:
    """Forty rows in three parts."""
    return parts_of(runtime, "corpus", IDS)


@pytest.fixture
def matched(tmp_path: Path, parts: list[Part], runtime: Runtime) -> Matched:
    """Match the parts with vectors in two files."""

    def match(ids: list, vectors: np.ndarray) -> tuple[ArtifactRef, list[ArtifactRef]]:
        half = len(ids) // 2
        for name, its in (("a", slice(half)), ("b", slice(half, None))):
            save(tmp_path / f"{name}.parquet", ids[its], vectors[its], FLOATS)
        found = kept(runtime, tmp_path / "*.parquet")
        return match_vectors(parts, found, runtime), found

    return match


def test_each_row_gets_the_vector_of_its_id_in_whatever_order(
    matched: Matched, parts: list[Part], runtime: Runtime
) -> None:
    store, vectors = ArtifactStore(runtime.root), drawn(50)
    ids = [*IDS, *(f"other {n}" for n in range(10))]
    order = np.random.default_rng(1).permutation(50)
    matches, files = matched([ids[n] for n in order], vectors[order])
    facts = store.manifest(matches).facts
    assert facts["unknown"] == 10
    assert {*facts["unknown_ids"]} < {*ids[40:]}
    (note,) = match_notes([facts])
    assert note.startswith("10 vectors of no row that is used, passed over")
    refs = adopted(runtime, parts, matches, files)
    assert np.array_equal(np.concatenate([load_vectors(store, ref) for ref in refs]), vectors[:40])
    assert store.manifest(refs[0]).facts == {"dimension": D}


def test_halves_stay_halves_on_disk_and_are_whole_in_a_part(
    tmp_path: Path, parts: list[Part], runtime: Runtime
) -> None:
    store, vectors = ArtifactStore(runtime.root), drawn(40).astype(np.float16)
    save(tmp_path / "v.parquet", IDS, vectors, pa.list_(pa.float16(), D))
    files = kept(runtime, tmp_path / "v.parquet")
    assert load_vectors(store, files[0]).dtype == np.float16
    refs = adopted(runtime, parts, match_vectors(parts, files, runtime), files)
    found = load_vectors(store, refs[1])
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors[16:32])


def test_rows_without_a_good_vector_are_told_all_at_once_with_counts(matched: Matched) -> None:
    vectors = drawn(41)
    vectors[3, 2], vectors[4] = np.nan, 0
    vectors[5, 0] = np.inf
    ids = [*IDS[:-4], "x", "y", "z", "w", IDS[7]]
    message = refused(lambda: matched(ids, vectors))
    assert "expected one vector for each of 40 rows" in message
    assert f"4 have no vector ({', '.join(map(repr, IDS[-4:-1]))}, ...)" in message
    assert f"1 have several vectors ({IDS[7]!r})" in message
    assert f"2 have a vector that is not finite ({IDS[3]!r}, {IDS[5]!r})" in message
    assert f"1 have a vector of zeros alone ({IDS[4]!r})" in message
    assert "4 vectors have ids that no row has ('x', 'y', 'z')" in message


def test_vectors_of_rows_that_are_not_used_may_be_anything(matched: Matched) -> None:
    vectors = drawn(44)
    vectors[40], vectors[41, 0] = 0, np.nan
    assert matched([*IDS, "x", "y", "z", "z"], vectors)


def test_a_piece_has_the_vector_of_its_row_unless_it_has_its_own(
    tmp_path: Path, runtime: Runtime
) -> None:
    parts = parts_of(runtime, "long", ["r#0", "r#1", "r#2"])
    save(tmp_path / "v.parquet", ["r", "r#1"], np.eye(2), FLOATS)
    files = kept(runtime, tmp_path / "v.parquet")
    (ref,) = adopted(runtime, parts, match_vectors(parts, files, runtime), files)
    assert load_vectors(ArtifactStore(runtime.root), ref).argmax(axis=1).tolist() == [0, 1, 0]


def test_files_of_other_dimensions_are_refused(
    tmp_path: Path, parts: list[Part], runtime: Runtime
) -> None:
    save(tmp_path / "a.parquet", IDS, drawn(40), FLOATS)
    save(tmp_path / "b.parquet", ["x"], np.ones((1, 3)), FLOATS)
    with pytest.raises(DimensionMismatchError, match=r"d=6 in .*a.parquet and d=3 in .*b.parquet"):
        match_vectors(parts, kept(runtime, tmp_path / "*.parquet"), runtime)


def test_more_files_and_rows_change_nothing_of_those_there_are(
    tmp_path: Path, runtime: Runtime
) -> None:
    corpus: list[Part] = []

    def grown(name: str, count: int) -> list[str]:
        ids = [f"{name}{n}" for n in range(count)]
        corpus.extend(parts_of(runtime, name, ids))
        save(tmp_path / f"{name}.parquet", ids, drawn(count), FLOATS)
        files = kept(runtime, tmp_path / "*.parquet")
        matches = match_vectors(corpus, files, runtime)
        return [ref.key for ref in adopted(runtime, corpus, matches, files)]

    before = grown("b", 40)
    assert grown("a", 20)[: len(before)] == before


# A look before the run


def test_a_look_finds_what_is_wrong_with_vectors(tmp_path: Path) -> None:
    def told(wanted: list[str], **fields: str) -> str:
        sources = {"corpus": VectorSource(path=str(tmp_path / "*.parquet"), **fields)}
        (error,) = check_vectors(sources, {"corpus": wanted})
        assert error.where.startswith("embedding.vectors.corpus: ")
        assert error.remedy
        return error.message

    save(tmp_path / "a.parquet", IDS, drawn(40), FLOATS)
    source = VectorSource(path=str(tmp_path / "a.parquet"))
    assert check_vectors({"corpus": source}, {"corpus": [*IDS, "row-3#1"]}) == []
    assert "of 2 looked at 1 have none, such as 'x'; vectors have ids such as 'row-0'" in told(
        ["row-1", "x"]
    )
    assert "id_column names column 'key'" in told([], id_column="key")
    save(tmp_path / "b.parquet", ["x"], np.ones((1, 3)), FLOATS)
    assert "expected vectors of d=6, as in a.parquet, got d=3" in told([])
    sources = {name: VectorSource(path=str(tmp_path / f"{name}.parquet")) for name in "ab"}
    (error,) = check_vectors(sources, {"a": [], "b": []})
    assert error.message == "expected vectors of one encoder, got d=6 of the a and d=3 of the b"
