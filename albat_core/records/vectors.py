"""Embeddings: of the parts of a corpus, and of adaptation examples."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.records.shards import Part
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "embeddings"
QUERY_STAGE = "queries"
VECTORS = "embeddings.npy"
QUERY_IDS = "queries.parquet"


class EmbeddedPart(BaseModel):
    """A part of the corpus and the embeddings of its rows, in the same order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Part
    embeddings: ArtifactRef

    @property
    def reused(self) -> bool:
        """Whether the embeddings were found finished."""
        return self.embeddings.reused

    def __str__(self) -> str:
        return str(self.embeddings)


def load_queries(store: ArtifactStore, ref: ArtifactRef) -> tuple[list[str], NDArray[np.float32]]:
    """Return ids and embeddings (n, d) float32 of the adaptation examples."""
    folder = store.folder(ref)
    ids = read_table(folder / QUERY_IDS)["example_id"].to_pylist()
    return ids, np.load(folder / VECTORS, allow_pickle=False)


def load_vectors(store: ArtifactStore, ref: ArtifactRef) -> NDArray[np.float32]:
    """Return a part's embeddings (n, d) float32, mapped from the file rather than read."""
    vectors: NDArray[np.float32] = np.load(
        store.folder(ref) / VECTORS, mmap_mode="r", allow_pickle=False
    )
    return vectors
