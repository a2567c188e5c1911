"""Scores of the candidates."""

from albat_core import scoring
from albat_core.artifacts import ArtifactRef
from albat_core.backbones.base import BackboneConfig
from albat_core.scoring import ScoringConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("score", "score candidates")
def score_candidates(
    candidates: ArtifactRef,
    surrogate: ArtifactRef,
    backbone: BackboneConfig,
    config: ScoringConfig,
    runtime: Runtime,
) -> ArtifactRef:
    """Score all candidates with the surrogate."""
    return scoring.score_candidates(candidates, surrogate, backbone, config, runtime)
