"""Adapters: what their manifests say of the training."""

from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "adapter"


def steps_in_all(store: ArtifactStore, adapter: ArtifactRef) -> int:
    """Return the steps to an adapter's best, those of the adapters that it went on from too."""
    facts = store.manifest(adapter).facts
    return int(facts.get("best_step_in_all", facts["best_step"]))
