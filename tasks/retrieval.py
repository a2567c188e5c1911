"""Candidates from the corpus."""

from albat_core import retrieval
from albat_core.artifacts import ArtifactRef
from albat_core.retrieval import RetrievalConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("retrieve", "retrieve candidates")
def retrieve_candidates(
    index: ArtifactRef, queries: ArtifactRef, config: RetrievalConfig, runtime: Runtime
) -> ArtifactRef:
    """Find the corpus examples nearest to each adaptation example."""
    return retrieval.retrieve_candidates(index, queries, config, runtime)


@stage_task("draw", "draw random candidates")
def draw_candidates(
    index: ArtifactRef, selection: ArtifactRef, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Draw as many random corpus examples as were selected."""
    return retrieval.draw_candidates(index, selection, seed, runtime)
