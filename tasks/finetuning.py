"""Training of adapters."""

from albat_core.artifacts import ArtifactRef
from albat_core.backbones.base import BackboneConfig
from albat_core.finetuning import adapter
from albat_core.finetuning.trainer import FinetuneConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("fine-tune", "fine-tune: {label}")
def finetune(
    mixture: ArtifactRef,
    adaptation: ArtifactRef,
    backbone: BackboneConfig,
    config: FinetuneConfig,
    seed: int,
    runtime: Runtime,
    label: str,
) -> ArtifactRef:
    """Train an adapter on a mixture."""
    return adapter.finetune(mixture, adaptation, backbone, config, seed, runtime, label)
