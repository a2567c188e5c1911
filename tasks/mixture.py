"""Selection and weights."""

from albat_core import mixture
from albat_core.artifacts import ArtifactRef
from albat_core.mixture import MixtureConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("select", "select and weigh")
def select(
    candidates: ArtifactRef, scores: ArtifactRef, config: MixtureConfig, runtime: Runtime
) -> ArtifactRef:
    """Choose among scored candidates and weigh them."""
    return mixture.select(candidates, scores, config, runtime)


@stage_task("select all", "take all random candidates")
def select_all(candidates: ArtifactRef, runtime: Runtime) -> ArtifactRef:
    """Take every candidate with the same weight."""
    return mixture.select_all(candidates, runtime)
