"""The adaptation set, split by document."""

from albat_core import adaptation
from albat_core.adaptation import SplitConfig
from albat_core.artifacts import ArtifactRef
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("split", "split adaptation set by document")
def split_adaptation(
    shards: list[ArtifactRef],
    heldout: list[ArtifactRef],
    config: SplitConfig,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Divide the adaptation set into training, validation and test documents."""
    return adaptation.split_adaptation(shards, heldout, config, seed, runtime)
