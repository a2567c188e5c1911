"""FAISS on a GPU, where there is one that it was built for; and where it was not."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from albat_core.records.indexes import load_index
from albat_core.records.losses import document_losses
from albat_core.records.vectors import load_vectors
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.search import config as search_config
from albat_core.search import library
from albat_core.search.config import IndexConfig
from albat_core.search.index import ExactSearch, VectorIndex, recall
from albat_core.search.library import MOST, gpus
from albat_core.search.space import unit
from albat_core.stages.index import build_index
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from tests.core.embeddings import Embedded, clustered

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = pytest.mark.skipif(
    not torch.cuda.is_available() or not gpus(Runtime()), reason="needs a GPU that FAISS has"
)
ON_CPU, ON_GPU = Runtime(device="cpu"), Runtime(device="cuda")


def on(runtime: Runtime, device: str) -> Runtime:
    return runtime.model_copy(update={"device": device})


def test_where_faiss_cannot_compute_on_the_gpu_the_cpu_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    monkeypatch.setattr(library, "resolve_device", lambda runtime: torch.device("cuda"))
    monkeypatch.setattr(library, "device_name", lambda runtime: asked.append(1) or "NVIDIA H200")
    monkeypatch.setattr(library.load_faiss(), "get_num_gpus", lambda: 1)
    monkeypatch.setattr(library, "_TRIAL", "import os; os.write(2, b'no kernel image'); os.abort()")
    library._computes.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [gpus(ON_GPU), gpus(ON_GPU)] == [0, 0]
    assert len(asked) == 2
    [told] = [record.getMessage() for record in caplog.records]
    assert "cannot compute on NVIDIA H200" in told
    assert "(no kernel image)" in told
    index = VectorIndex.new(8, "Flat", ON_GPU)
    index.add(np.eye(8, dtype=np.float32))
    assert index.search(np.eye(8, dtype=np.float32), 1)[1].ravel().tolist() == list(range(8))
    library._computes.cache_clear()


def test_faiss_is_tried_once_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    monkeypatch.setattr(library, "resolve_device", lambda runtime: torch.device("cuda"))
    monkeypatch.setattr(library, "device_name", lambda runtime: "a GPU")
    monkeypatch.setattr(library.load_faiss(), "get_num_gpus", lambda: 2)
    monkeypatch.setattr(library, "_TRIAL", f"open({str(tries)!r}, 'a').write('tried ')")
    library._computes.cache_clear()
    assert [gpus(ON_GPU), gpus(ON_GPU)] == [2, 2]
    assert tries.read_text() == "tried "
    library._computes.cache_clear()


@GPU
@pytest.mark.parametrize(
    ("kind", "dimension"), [("flat", 16), ("ivf", 16), ("ivfpq", 16), ("ivfpq", 25)]
)
def test_a_gpu_finds_what_the_cpu_finds(
    embedded: Embedded, runtime: Runtime, kind: str, dimension: int
) -> None:
    """FAISS has codes of 16 bytes on GPUs, and of 25 on the CPU alone."""
    vectors, queries = np.split(clustered(rows=12_300, dimension=dimension), [12_000])
    parts = embedded(vectors[:7000], vectors[7000:])
    there = on(runtime, "cuda")
    ref = build_index(parts, IndexConfig(kind=kind), 0, there)
    store = ArtifactStore(runtime.root)
    facts = store.manifest(ref).facts
    found = {}
    for device in ("cuda", "cpu"):
        corpus = load_index(store, ref, on(runtime, device))
        projected = corpus.space.project(queries)
        found[device] = corpus.index.search(projected, 10)
    exact = ExactSearch(projected, 10, gpus(there))
    for block in (vectors[:7000], vectors[7000:]):
        exact.add(corpus.space.project(block))
    assert recall(found["cuda"][1], exact.positions) > 0.9
    assert facts["recall_at_10"] > 0.9
    assert recall(found["cuda"][1], found["cpu"][1]) > 0.99
    np.testing.assert_allclose(found["cuda"][0], found["cpu"][0], atol=0.02)


@GPU
def test_an_index_made_on_a_cpu_is_searched_on_a_gpu(
    embedded: Embedded, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells are found by a graph, which stays on the CPU."""
    monkeypatch.setattr(search_config, "_MANY_CELLS", 100)
    vectors = clustered(rows=12_000)
    ref = build_index(embedded(vectors), IndexConfig(kind="ivf"), 0, on(runtime, "cpu"))
    store = ArtifactStore(runtime.root)
    assert "HNSW" in store.manifest(ref).facts["factory"]
    queries = clustered(rows=300, seed=1)
    found = []
    for device in ("cuda", "cpu"):
        corpus = load_index(store, ref, on(runtime, device))
        found.append(corpus.index.search(corpus.space.project(queries), 10)[1])
    assert recall(*found) > 0.99


@GPU
def test_what_a_gpu_cannot_find_the_cpu_does() -> None:
    vectors, queries = unit(clustered(rows=5000)), unit(clustered(rows=20, seed=1))
    flat = VectorIndex.new(16, "Flat", ON_GPU)
    flat.add(vectors)
    assert flat._gpu
    near = flat.search(queries, 10)[1]
    every = flat.search(queries, MOST + 1)[1]
    assert not flat._gpu
    assert recall(every[:, :10], near) == 1
    cells = VectorIndex.new(16, f"IVF{MOST + 200},Flat", ON_GPU, cells=MOST + 200)
    cells.train(vectors)
    cells.add(vectors)
    cells.look_into(MOST + 200)
    assert recall(cells.search(queries, 10)[1], near) == 1


@GPU
def test_an_index_grows_on_a_gpu(embedded: Embedded, runtime: Runtime) -> None:
    vectors, there = clustered(rows=12_000), on(runtime, "cuda")
    parts = embedded(vectors[:8000], vectors[8000:])
    config = IndexConfig(kind="ivf", grow=True)
    first = build_index(parts[:1], config, 0, there)
    grown = build_index(parts, config, 0, there, earlier=first)
    corpus = load_index(ArtifactStore(runtime.root), grown, there)
    own = corpus.index.search(corpus.space.project(vectors[-100:]), 1)[1].ravel()
    assert (own == np.arange(11_900, 12_000)).mean() > 0.95


@CUDA
def test_a_run_on_a_gpu_is_near_that_on_a_cpu(
    run_config: RunConfig, chain: Chain, tmp_path: Path
) -> None:
    runtime = run_config.runtime.model_copy(
        update={"device": "cuda", "root": str(tmp_path / "there")}
    )
    there = Chain(run_config.model_copy(update={"runtime": runtime}))
    here, far = ArtifactStore(run_config.runtime.root), ArtifactStore(runtime.root)
    assert there.selection.key == chain.selection.key
    for one, other in zip(there.inputs.embeddings, chain.inputs.embeddings, strict=True):
        found, expected = (
            load_vectors(store, part.embeddings) for store, part in ((far, one), (here, other))
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)
    for arm in ("untouched", "adaptation_only", "albat"):
        losses = [
            document_losses(store, its.arms.evaluation(arm))[0]
            for store, its in ((far, there), (here, chain))
        ]
        np.testing.assert_allclose(*losses, rtol=1e-3)
    estimates = [
        its.manifest(c.estimate).facts["alpha_estimate"] for its, c in ((far, there), (here, chain))
    ]
    assert estimates[0] == pytest.approx(estimates[1], abs=0.02)
