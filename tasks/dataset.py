"""The weighted mixture as Parquet."""

from albat_core import dataset
from albat_core.artifacts import ArtifactRef
from albat_core.dataset import DatasetConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@stage_task("materialize", "write mixture: {label}")
def write_mixture(
    adaptation: ArtifactRef,
    selection: ArtifactRef | None,
    alpha: float,
    config: DatasetConfig,
    runtime: Runtime,
    label: str,
) -> ArtifactRef:
    """Write adaptation and selected rows with their weights."""
    del label
    return dataset.write_mixture(adaptation, selection, alpha, config, runtime)
