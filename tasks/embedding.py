"""Embeddings of the corpus and of the adaptation set."""

from albat_core import embedding
from albat_core.artifacts import ArtifactRef
from albat_core.backbones.base import BackboneConfig
from albat_core.embedding import EmbeddedPart, EmbeddingConfig
from albat_core.shards import Part
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("embed", "embed {label}")
def embed_part(
    part: Part, label: str, backbone: BackboneConfig, config: EmbeddingConfig, runtime: Runtime
) -> EmbeddedPart:
    """Embed one part of the corpus."""
    return embedding.embed_part(part, label, backbone, config, runtime)


@stage_task("embed adaptation", "embed adaptation examples")
def embed_queries(
    adaptation: ArtifactRef, backbone: BackboneConfig, config: EmbeddingConfig, runtime: Runtime
) -> ArtifactRef:
    """Embed the adaptation examples that are trained on."""
    return embedding.embed_queries(adaptation, backbone, config, runtime)
