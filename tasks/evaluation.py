"""Losses on held-out documents."""

from albat_core import evaluation
from albat_core.artifacts import ArtifactRef
from albat_core.backbones.base import BackboneConfig
from albat_core.evaluation import EvaluationConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("evaluate", "evaluate: {label}")
def evaluate(
    adapter: ArtifactRef | None,
    adaptation: ArtifactRef,
    backbone: BackboneConfig,
    config: EvaluationConfig,
    runtime: Runtime,
    label: str,
) -> ArtifactRef:
    """Measure every held-out loss with an adapter (None: without)."""
    return evaluation.evaluate(adapter, adaptation, backbone, config, runtime, label)
