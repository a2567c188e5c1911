"""Adapters: what their manifests say of the training."""

from collections.abc import Mapping, Sequence
from typing import Any

from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "adapter"


def ended_early(facts: Mapping[str, Any]) -> bool:
    """Tell whether a training, by its facts, was best at its last step: it was not done.

    One that is not looked at on its way tells nothing of that.
    """
    looked = len(facts["history"]) > 2 and not facts["refit"]
    return bool(looked and facts["best_step"] == facts["steps"])


def unfinished_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return which trainings were best at their last step, from their facts."""
    return tuple(
        f"best at its last step, {each['steps']:,}: more steps would likely better it"
        for each in facts
        if ended_early(each)
    )


def steps_in_all(store: ArtifactStore, adapter: ArtifactRef) -> int:
    """Return the steps to an adapter's best, those of the adapters that it went on from too."""
    facts = store.manifest(adapter).facts
    return int(facts.get("best_step_in_all", facts["best_step"]))


def rate_found(store: ArtifactStore, adapter: ArtifactRef) -> float | None:
    """Return what Prodigy multiplied learning rates by on the way to an adapter; None of others."""
    found: float | None = store.manifest(adapter).facts.get("rate_found")
    return found
