"""A run whose rows were embedded elsewhere: as good as embedding here, and of one space."""

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.records.candidates import read_candidates, read_neighbours
from albat_core.records.shards import iterate_part
from albat_core.records.vectors import load_queries, load_vectors
from albat_core.runs.chain import Chain
from albat_core.stages.embed import EmbeddingConfig
from albat_core.store.artifacts import ArtifactStore
from flows.checks import check_file
from flows.config import load_config, starter_config
from tests.core.row_files import refused
from tests.core.test_vectors import save
from tests.encoders import save_sentence_encoder
from tests.toys import rewrite, topic_rows, write_jsonl, write_run

ROOT = Path(__file__).parent.parent.parent
TOPICS = ("plants", "ships")
HALF = 2e-3  # by which halves of precision move a similarity at most


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A run whose rows are embedded by an encoder."""
    folder = tmp_path_factory.mktemp("here")
    save_sentence_encoder(folder / "encoder")
    return Chain(load_config(str(write_run(folder, embedding={"encoder": "encoder"}))))


def encoded(folder: Path, rows: list[dict], kind: type = np.float16) -> pa.Table:
    """Return what a person writes who encodes rows with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder / "encoder"), device="cpu")
    vectors = model.encode([row["text"] for row in rows], show_progress_bar=False).astype(kind)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.table({"id": [row["id"] for row in rows], "embedding": column})


def folder_of(chain: Chain) -> Path:
    return Path(chain.config.corpus[0].paths[0]).parent.parent


def beside(folder: Path, topic: str, form: str) -> bytes:
    """Return what `numpy.save` writes of a file's vectors, or their ids, one a line."""
    table = pq.read_table(folder / "vectors" / f"{topic}.parquet")
    if form == "txt":
        return "\n".join(table["id"].to_pylist()).encode()
    array = io.BytesIO()
    np.save(array, np.stack(table["embedding"].to_numpy()))
    return array.getvalue()


def elsewhere(here: Chain, folder: Path, **embedding: object) -> Path:
    """Write the same run with vectors of the corpus that were computed elsewhere."""
    path = write_run(folder)
    source = folder_of(here)
    vectors = {"corpus": str(folder / "vectors" / "*.parquet")}
    (folder / "vectors").mkdir()
    for topic in TOPICS:
        table = encoded(source, topic_rows(topic, 60))
        pq.write_table(table.take(np.arange(60)[::-1]), folder / "vectors" / f"{topic}.parquet")
    embedding = {"encoder": str(source / "encoder"), "vectors": vectors} | embedding
    return rewrite(path, {"embedding": {k: v for k, v in embedding.items() if v is not None}})


def neighbours(chain: Chain) -> dict[str, dict[str, float]]:
    """Return, by adaptation row, the similarities of its neighbours, the nearest first."""
    store = ArtifactStore(chain.config.runtime.root)
    ids = read_candidates(store, chain.retrieved)["example_id"].to_pylist()
    found: dict[str, dict[str, float]] = {}
    for pair in read_neighbours(store, chain.retrieved).to_pylist():
        found.setdefault(pair["query"], {})[ids[pair["candidate"]]] = pair["similarity"]
    return found


def assert_found_alike(there: Chain, here: Chain) -> None:
    """See that neighbours are the same, but for ones as near as the last, within rounding."""
    found, expected = neighbours(there), neighbours(here)
    assert found.keys() == expected.keys()
    compared = 0
    for query, its in expected.items():
        sure = {name: s for name, s in its.items() if s > min(its.values()) + HALF}
        assert {name: found[query][name] for name in sure} == pytest.approx(sure, abs=HALF)
        compared += len(sure)
    assert compared > 0.8 * sum(map(len, expected.values()))


def test_halves_of_precision_from_elsewhere_find_the_neighbours_of_embedding_here(
    here: Chain, tmp_path: Path
) -> None:
    there = Chain(load_config(str(elsewhere(here, tmp_path))))
    assert_found_alike(there, here)
    (space,) = [s for s in there.stages if s.label == "compare vectors with the encoder's"]
    assert there.facts(space.refs[0])["median_distance"] < 1e-3
    read = [s.label for s in there.stages]
    assert "take vectors of the corpus" in read
    assert "embed corpus" not in read


def test_the_same_numbers_from_elsewhere_find_exactly_the_same(here: Chain, tmp_path: Path) -> None:
    store = ArtifactStore(here.config.runtime.root)
    floats = pa.list_(pa.float32())
    path = elsewhere(here, tmp_path)
    for number, part in enumerate(here.inputs.embeddings):
        ids = [e.example_id for some in iterate_part(store, part.part) for e in some]
        name = TOPICS[number]
        vectors = load_vectors(store, part.embeddings)
        save(tmp_path / "vectors" / f"{name}.parquet", ids, vectors, floats)
    assert neighbours(Chain(load_config(str(path)))) == neighbours(here)


def test_vectors_of_both_need_no_encoder(here: Chain, tmp_path: Path) -> None:
    source = folder_of(here)
    own = encoded(source, topic_rows("plants", 40, seed=1), np.float32)
    pq.write_table(own, tmp_path / "own.parquet")
    vectors = {"corpus": str(tmp_path / "vectors"), "adaptation": str(tmp_path / "own.parquet")}
    path = elsewhere(here, tmp_path, encoder=None, vectors=vectors)
    assert check_file(str(path)) == []
    there = Chain(load_config(str(path)))
    assert_found_alike(there, here)
    for name in ("queries", "heldout_queries"):
        ids, found = load_queries(there._store, getattr(there.inputs, name))
        known, expected = load_queries(here._store, getattr(here.inputs, name))
        assert ids == known
        np.testing.assert_allclose(found, expected, atol=1e-5)
    pq.write_table(own.slice(0, 30), tmp_path / "own.parquet")
    told = refused(lambda: Chain(load_config(str(path))).inputs.queries)
    assert "embedding.vectors.adaptation: expected one vector for each of" in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True), "cosine is 1.000"),
        (lambda v: v[:, ::-1], "median cosine"),
        (lambda v: v[:, :8], "as the encoder gives, got d=8"),
    ],
    ids=["normalized", "another space", "another dimension"],
)
def test_vectors_of_another_space_than_the_encoder_s_are_refused(
    here: Chain, tmp_path: Path, change: Callable, said: str
) -> None:
    path = elsewhere(here, tmp_path)
    for file in (tmp_path / "vectors").iterdir():
        table = pq.read_table(file)
        vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32)
        save(file, table["id"].to_pylist(), change(vectors), pa.list_(pa.float32()))
    with pytest.raises((InputError, DimensionMismatchError), match=said) as caught:
        _ = Chain(load_config(str(path))).inputs.embeddings
    assert "vectors.adaptation" in caught.value.remedy


def test_the_page_about_it_works_as_it_is_written(
    here: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "how-to" / "use-embeddings-you-have.md").read_text()
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", page, re.DOTALL)
    code, by_encoder, by_vectors = (text for _, text in blocks)
    path = write_run(tmp_path)
    (tmp_path / "encoder").symlink_to(folder_of(here) / "encoder")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), {})
    rewrite(path, yaml.safe_load(by_encoder))
    assert check_file(str(path)) == []
    assert_found_alike(Chain(load_config(str(path))), here)
    for name, (number, topic) in itertools.product(("npy", "txt"), enumerate(TOPICS)):
        (tmp_path / "vectors" / f"{number}.{name}").write_bytes(beside(tmp_path, topic, name))
    own = encoded(tmp_path, topic_rows("plants", 40, seed=1))
    pq.write_table(own.rename_columns(["key", "embeddings"]), tmp_path / "own.parquet")
    rewrite(path, yaml.safe_load(by_vectors))
    assert check_file(str(path)) == []
    assert_found_alike(Chain(load_config(str(path))), here)


# Settings and a look


def test_queries_have_to_be_of_the_same_space() -> None:
    def told(**fields: object) -> str:
        with pytest.raises(ValidationError) as caught:
            EmbeddingConfig.model_validate(fields)
        return str(caught.value)

    assert "or encoder" in told(vectors={"corpus": "v.parquet"})
    assert "needs vectors.corpus" in told(vectors={"adaptation": "v.parquet"})
    both = {"corpus": "v.parquet", "adaptation": "w.parquet"}
    assert "nothing is left to embed" in told(vectors=both, encoder="e")
    assert "nothing is left to embed" in told(vectors=both, layers=1)
    assert (
        EmbeddingConfig(vectors=both, batch_tokens=8192).computing()
        == EmbeddingConfig().computing()
    )


def test_a_file_of_settings_shows_vectors_and_reads_paths_beside_itself(tmp_path: Path) -> None:
    assert (
        "#    vector_column: embedding" in starter_config() or "#vector_column" in starter_config()
    )
    vectors = {
        "corpus": {"path": "v/*.npy", "ids": "v/*.txt"},
        "adaptation": "own.parquet",
    }
    config = load_config(str(write_run(tmp_path, embedding={"vectors": vectors})))
    found = config.embedding.vectors
    assert found.corpus.paths == (str(tmp_path / "v/*.npy"),)
    assert found.corpus.ids == (str(tmp_path / "v/*.txt"),)
    assert found.adaptation.paths == (str(tmp_path / "own.parquet"),)


def test_check_looks_at_vectors(here: Chain, tmp_path: Path) -> None:
    path = elsewhere(here, tmp_path)
    assert check_file(str(path)) == []
    save(tmp_path / "vectors" / "ships.parquet", ["x"], np.ones((1, 16)), pa.list_(pa.float32()))
    (told,) = check_file(str(path))
    assert "embedding.vectors.corpus" in told.where
    assert "of 120 looked at 60 have none, such as 'ships-0-0'" in told.message
    save(tmp_path / "vectors" / "ships.parquet", ["x"], np.ones((1, 3)), pa.list_(pa.float32()))
    (told,) = check_file(str(path))
    assert "of d=16, as in plants.parquet, got d=3" in told.message
    save(tmp_path / "own.parquet", ["x"], np.ones((1, 5)), pa.list_(pa.float32()))
    vectors = {"corpus": "vectors/plants.parquet", "adaptation": "own.parquet"}
    write_jsonl(tmp_path / "corpus" / "ships.jsonl", topic_rows("plants", 2))
    found = check_file(str(rewrite(path, {"embedding": {"vectors": vectors}})))
    assert any("adaptation" in each.where and "have none" in each.message for each in found)
