"""The whole chain with everything on S3: a real server on this machine (rclone)."""

import bz2
import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from albat_core.backbones.folder import backbone_folder, folder_fingerprint
from albat_core.errors import InputError, TransientError
from albat_core.pruning import Keeping, Pruning
from albat_core.records.vectors import load_vectors
from albat_core.sources import files as input_files
from albat_core.sources.checks import check_source
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.sources.rows import read_rows
from albat_core.sources.vector_checks import check_vectors
from albat_core.sources.vectors import VectorSource, find_vectors
from albat_core.stages.adopt import keep_vectors, match_vectors
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from flows.albat import albat
from flows.checks import find_mistakes
from flows.config import load_config
from tests.core.picture_files import encoded, pattern, tar_of, write_pictures
from tests.core.test_vectors import FLOATS, IDS, adopted, drawn, parts_of, save
from tests.end_to_end.conftest import Run
from tests.end_to_end.s3_server import BUCKET, Served, needs_rclone
from tests.toys import save_backbone, write_run

HOME = f"s3://{BUCKET}/toy"

pytestmark = [pytest.mark.end_to_end, needs_rclone]


@pytest.fixture(scope="module")
def bucket(s3: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3fs.S3FileSystem]:
    """Be a machine of its own; gives another client of the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        forget(tmp_path_factory, patch)
        yield s3.client()


def forget(folders: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> None:
    """Go on as another machine would: no open client, nothing fetched yet."""
    s3fs.S3FileSystem.clear_instance_cache()
    patch.setattr(tempfile, "tempdir", str(folders.mktemp("machine")))
    patch.setenv("XDG_CACHE_HOME", str(folders.mktemp("cache")))


@pytest.fixture(scope="module")
def first(
    bucket: s3fs.S3FileSystem, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run whose configuration, inputs, artifacts and output are all in the bucket."""
    folder = tmp_path_factory.mktemp("inputs")
    path = write_run(folder)
    config = yaml.safe_load(path.read_text())
    config["runtime"]["root"] = f"{HOME}/artifacts"
    config["output"] = f"{HOME}/runs"
    path.write_text(yaml.safe_dump(config))
    bucket.put(str(folder), HOME, recursive=True)
    shutil.rmtree(folder)
    return run()


def run() -> Run:
    config = load_config(f"{HOME}/run.yaml")
    assert find_mistakes(config) == []
    return Run(path=Path("run.yaml"), config=config, result=albat(config))


def test_results_are_in_the_bucket(first: Run, bucket: s3fs.S3FileSystem) -> None:
    assert first.result.places["report"] == f"{HOME}/runs/toy/report.html"
    assert b"<html" in bucket.cat(f"{HOME}/runs/toy/report.html")
    manifest = first.manifest("fine-tune: ALBAT")
    assert {f.path for f in manifest.files} >= {"adapter_config.json", "adapter_model.safetensors"}
    for file in manifest.files:
        assert storage.digest(f"{first.result.places['adapter']}/{file.path}") == file.sha256
    settings = json.loads(bucket.cat(f"{first.result.places['adapter']}/adapter_config.json"))
    assert settings["base_model_name_or_path"] is None  # peft would not find it there
    exported = bucket.find(f"{first.result.places['mixture']}/data")
    assert [Path(name).name for name in exported] == ["train-00000-of-00001.parquet"]
    assert first.labels - first.computed == {
        f"{what}: Adaptation data only, best step" for what in ("write mixture", "fine-tune")
    }


def test_another_machine_computes_nothing(
    first: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first.manifests()
    forget(tmp_path_factory, monkeypatch)
    second = run()
    assert second.computed == set()
    assert second.manifests() == before
    assert second.result.places == first.result.places


def test_pruning_takes_nothing_that_the_run_needs(first: Run, bucket: s3fs.S3FileSystem) -> None:
    store = first.store
    lone = store.produce("scores", 1, {}, {"of": "nothing"}, lambda _: Built())
    left = f"{HOME}/artifacts/adapter/{'b' * 32}/0123abcd"
    bucket.pipe(f"{left}/data", b"half")
    looking = Pruning(store, Keeping(younger=-60))  # all, that of this second too
    gone = {each.place for each in looking.remove(looking.find())}
    assert gone == {f"{store.root}/{lone}", left}
    assert not bucket.exists(left)
    assert run().computed == set()


def test_what_others_change_is_seen_at_once(first: Run, bucket: s3fs.S3FileSystem) -> None:
    """The same process, whose client has read the old files."""
    ships, plants = (bucket.cat(f"{HOME}/corpus/{name}.jsonl") for name in ("ships", "plants"))
    assert len(ships.splitlines()) == 60
    changed = ships.replace(b"anchor", b"ANCHOR", 1)
    assert len(changed) == len(ships)
    bucket.pipe(f"{HOME}/corpus/ships.jsonl", changed)
    bucket.pipe(f"{HOME}/corpus/more.jsonl", plants.replace(b"plants-0", b"plants-9"))
    try:
        after = run()
    finally:
        bucket.pipe(f"{HOME}/corpus/ships.jsonl", ships)
        bucket.rm(f"{HOME}/corpus/more.jsonl")
    reused = [ref.reused for ref in after.refs("cut corpus")]
    assert reused == [False, True, False]  # more, plants, ships
    assert after.manifest("index").rows == 180


def test_files_larger_than_a_block_are_read_in_ranges(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    texts = [random.bytes(32).hex() for _ in range(20_000)]
    file = tmp_path / "large.parquet"
    pq.write_table(pa.table({"text": texts}), file, row_group_size=2_000)
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 64 << 10)
    s3fs.S3FileSystem.clear_instance_cache()
    assert file.stat().st_size > 4 * (64 << 10)
    bucket.put(str(file), f"{HOME}/large.parquet")
    (large,) = find_files(SourceConfig(path=f"{HOME}/large.parquet"))
    assert [row.text for row in read_rows(large)] == texts
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_folder_of_pictures(
    bucket: s3fs.S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_files, "_GROUP_LIMIT", 1)  # to see which of them change
    content = write_pictures(tmp_path / "p", [f"{i:02d}.png" for i in range(40)])
    for number in range(40):
        (tmp_path / "p" / f"{number:02d}.txt").write_text(f"picture {number}")
    bucket.put(f"{tmp_path}/p/", f"{HOME}/pictures/", recursive=True)
    bucket.pipe(f"{HOME}/pictures/metadata.csv", b"file_name,text\n07.png,of the table\n")
    source = SourceConfig(path=f"{HOME}/pictures")
    files = find_files(source)
    rows = [row for file in files for row in read_rows(file)]
    assert [row.image for row in rows] == list(content.values())
    captions = [f"picture {number}" for number in range(40)]
    captions[7] = "of the table"
    assert [row.text for row in rows] == captions
    assert check_source(source) == []
    # more than are asked for one by one: their folder is listed; each change is seen
    bucket.pipe(f"{HOME}/pictures/39.png", content["00.png"])
    bucket.pipe(f"{HOME}/pictures/38.txt", b"changed")
    bucket.pipe(f"{HOME}/pictures/metadata.csv", b"file_name,text\n07.png,changed\n")
    after = find_files(source)
    places = range(40)
    assert [i for i in places if files[i].fingerprint != after[i].fingerprint] == [7, 38, 39]


def test_an_archive_of_pictures(bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {}
    for number in range(60):
        members[f"{number}.png"] = encoded(pattern(32, 32, number))
        members[f"{number}.txt"] = f"picture {number}".encode()
    whole = tar_of(members)
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 64 << 10)
    s3fs.S3FileSystem.clear_instance_cache()
    assert len(whole) > 3 * (64 << 10)
    bucket.pipe(f"{HOME}/shard.tar", whole)
    bucket.pipe(f"{HOME}/cut.tar", whole[:100_000])
    (archive,) = find_files(SourceConfig(path=f"{HOME}/shard.tar"))
    rows = list(read_rows(archive))
    assert [row.text for row in rows] == [f"picture {number}" for number in range(60)]
    assert [row.image for row in rows] == [members[f"{number}.png"] for number in range(60)]
    (cut,) = find_files(SourceConfig(path=f"{HOME}/cut.tar"))
    with pytest.raises(InputError, match="damaged or truncated"):
        list(read_rows(cut))
    s3fs.S3FileSystem.clear_instance_cache()


def test_keys_may_have_any_character(bucket: s3fs.S3FileSystem) -> None:
    names = ("a+b", "a#b", "a%20b", "a b", "a&b=c", "a?b", "a[1]", "a{1,2}", "\u00e4")
    for name in names:
        bucket.pipe(f"{BUCKET}/keys/{name}/{name}.jsonl", b'{"text": "a"}\n')
    for name in names:
        folder = f"s3://{BUCKET}/keys/{name}"
        for path in (folder, f"{folder}/{name}.jsonl"):
            (file,) = find_files(SourceConfig(path=path))
            assert [row.example_id for row in read_rows(file)] == [f"{name}.jsonl:0"]


def test_a_backbone_that_was_replaced_is_fetched_again(
    bucket: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    place = f"{HOME}/other"
    fingerprints = []
    for seed in (1, 2):  # weights of the same size
        folder = save_backbone(tmp_path / str(seed), seed=seed)
        bucket.put(f"{folder}/", f"{place}/", recursive=True)
        config = load_config(f"{HOME}/run.yaml").backbone.model_copy(update={"path": place})
        fingerprints.append(folder_fingerprint(backbone_folder(config), weights=True))
    assert fingerprints[0] != fingerprints[1]


def test_many_artifacts_are_found_by_a_listing_and_what_was_read_of_them(
    bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    del bucket
    store = ArtifactStore(f"{HOME}/many")
    made = [store.produce("count", 1, {"n": n}, {}, lambda _: Built(rows=1)) for n in range(40)]
    asked: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    for get in (40, 1):  # each, then what was noted of all
        asked.clear()
        found = ArtifactStore(store.root).find_all(made)
        assert [found[ref].config for ref in made] == [{"n": n} for n in range(40)]
        assert asked.count("get_object") == get
    assert Counter(asked) == {"list_objects_v2": 1, "head_object": 1, "get_object": 1}


def test_threads_fetch_the_same_artifact_at_once(
    first: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ref,) = first.refs("fine-tune: ALBAT")
    files = first.manifest("fine-tune: ALBAT").files
    for _ in range(3):
        forget(tmp_path_factory, monkeypatch)
        store = ArtifactStore(first.config.runtime.root)
        with ThreadPoolExecutor(8) as pool:
            folders = list(pool.map(store.folder, [ref] * 8))
        assert len(set(folders)) == 1
        assert {p.name for p in folders[0].iterdir()} == {file.path for file in files}
        for file in files:
            assert storage.digest(folders[0] / file.path) == file.sha256


def test_damage_of_a_copy_is_mended_from_where_it_was_fetched(
    first: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ref,) = first.refs("fine-tune: ALBAT")
    (weights,) = [f for f in first.manifest("fine-tune: ALBAT").files if "safetensors" in f.path]
    forget(tmp_path_factory, monkeypatch)
    root = first.config.runtime.root
    copy = ArtifactStore(root).folder(ref) / weights.path
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ArtifactStore(root).folder(ref), range(8)))
    assert {storage.digest(folder / weights.path) for folder in folders} == {weights.sha256}
    assert ArtifactStore(root).find(ref) is not None


def test_a_changed_byte_in_the_bucket_is_found(first: Run, bucket: s3fs.S3FileSystem) -> None:
    (ref,) = first.refs("select")
    store = first.store
    manifest = store.manifest(ref)
    place = f"{HOME}/artifacts/{ref}/{manifest.attempt}/{manifest.files[0].path}"
    whole = bucket.cat(place)
    assert store.changed_files(ref) == []
    bucket.pipe(place, whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    try:
        assert store.changed_files(ref) == [manifest.files[0].path]
    finally:
        bucket.pipe(place, whole)


def test_a_changed_byte_in_the_bucket_is_mended_by_the_run_that_meets_it(
    first: Run,
    bucket: s3fs.S3FileSystem,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (ref,) = first.refs("fine-tune: ALBAT")
    before = first.manifest("fine-tune: ALBAT")
    weights = next(file for file in before.files if file.path == "adapter_model.safetensors")
    place = f"{HOME}/artifacts/{ref}/{before.attempt}/{weights.path}"
    whole = bucket.cat(place)
    bucket.pipe(place, whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    forget(tmp_path_factory, monkeypatch)
    after = run()
    (made,) = [f for f in after.manifest("fine-tune: ALBAT").files if f.path == weights.path]
    assert after.manifest("fine-tune: ALBAT").attempt != before.attempt
    assert made == weights
    assert storage.digest(f"{after.result.places['adapter']}/{weights.path}") == weights.sha256


@pytest.mark.parametrize("ending", ["gz", "bz2"])
def test_a_damaged_compressed_file_is_told(bucket: s3fs.S3FileSystem, ending: str) -> None:
    lines = "".join(f'{{"text": "{n * 7919 % 104729}"}}\n' for n in range(9999)).encode()
    packed = {"gz": gzip, "bz2": bz2}[ending].compress(lines)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    for content in (packed[: len(packed) // 2], bytes(damaged)):
        bucket.pipe(f"{HOME}/damaged.jsonl.{ending}", content)
        (file,) = find_files(SourceConfig(path=f"{HOME}/damaged.jsonl.{ending}"))
        with pytest.raises(InputError, match="damaged or truncated"):
            list(read_rows(file))


def test_wrong_keys_and_no_answer_are_told_apart(
    bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    del bucket
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG" * 8)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(InputError, match="storage refused access") as refused:
            storage.read_bytes(f"{HOME}/run.yaml")
    assert refused.value.where == f"{HOME}/run.yaml"
    assert "credentials" in refused.value.remedy
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(TransientError, match="storage did not answer") as silent:
            storage.exists(f"{HOME}/run.yaml")
    assert "network" in silent.value.remedy
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{HOME}/none.yaml")


def test_vectors_in_the_bucket_are_taken_and_known_again(
    bucket: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    runtime = Runtime(root=f"s3://{BUCKET}/adopted", device="cpu")
    parts, vectors = parts_of(runtime, "corpus", IDS), drawn(40)
    save(tmp_path / "a.parquet", IDS[:20], vectors[:20], FLOATS)
    np.save(tmp_path / "b.npy", vectors[20:])
    (tmp_path / "b.txt").write_text("\n".join(IDS[20:]))
    bucket.put(str(tmp_path), f"{BUCKET}/vectors", recursive=True)
    folder = f"s3://{BUCKET}/vectors"
    source = VectorSource(path=(f"{folder}/*.parquet", f"{folder}/b.npy"), ids=f"{folder}/b.txt")
    assert check_vectors({"corpus": source}, {"corpus": IDS}) == []

    def taken() -> list[ArtifactRef]:
        files = [keep_vectors(file, runtime) for file in find_vectors(source)]
        return [*files, *adopted(runtime, parts, match_vectors(parts, files, runtime), files)]

    first = taken()
    store = ArtifactStore(runtime.root)
    found = np.concatenate([load_vectors(store, ref) for ref in first[2:]])
    assert np.array_equal(found, vectors)
    assert all(ref.reused for ref in taken())
    np.save(tmp_path / "b.npy", vectors[:20])
    bucket.put(str(tmp_path / "b.npy"), f"{BUCKET}/vectors/b.npy")
    assert [ref.reused for ref in taken()] == [True, False, True, False, False]
