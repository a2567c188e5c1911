"""The FAISS index over the corpus."""

from albat_core import index
from albat_core.artifacts import ArtifactRef
from albat_core.embedding import EmbeddedPart
from albat_core.index import IndexConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("index", "index the corpus")
def build_index(
    parts: list[EmbeddedPart], config: IndexConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Index the embeddings of all parts."""
    return index.build_index(parts, config, seed, runtime)
