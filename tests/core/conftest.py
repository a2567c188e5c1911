"""What tests share: two trainings, each below a root of its own, stores, and embeddings."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from albat_core.records.shards import Part
from albat_core.records.vectors import VECTORS, EmbeddedPart
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.core.embeddings import Embedded
from tests.core.trainings import Training


@pytest.fixture
def training(chain: Chain, run_config: RunConfig, tmp_path: Path) -> Training:
    return Training(chain, run_config, tmp_path / "one")


@pytest.fixture
def another(chain: Chain, run_config: RunConfig, tmp_path: Path) -> Training:
    return Training(chain, run_config, tmp_path / "two")


@pytest.fixture(params=["local", "memory"])
def anywhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    """A store on this machine, and one that counts as remote; drafts and copies beside them."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = request.param == "local"
    return ArtifactStore(str(tmp_path / "root") if local else f"memory://{tmp_path}/root")


@pytest.fixture
def embedded(runtime: Runtime) -> Embedded:
    """Embeddings as parts of a corpus that has no rows to read."""
    store = ArtifactStore(runtime.root)

    def parts(*blocks: np.ndarray) -> list[EmbeddedPart]:
        made = []
        for number, vectors in enumerate(blocks):

            def build(folder: Path, vectors: np.ndarray = vectors) -> Built:
                np.save(folder / VECTORS, vectors)
                return Built(rows=len(vectors), facts={"dimension": vectors.shape[1]})

            content = {"content": f"{vectors.shape} {vectors.sum()}"}
            ref = store.produce("embeddings", 1, content, {}, build)
            shards = ArtifactRef(stage="shards", key=f"s{number}")
            part = Part(shards=shards, name="part-0", rows=len(vectors), sha256="")
            made.append(EmbeddedPart(part=part, embeddings=ref))
        return made

    return parts
