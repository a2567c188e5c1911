"""The verdict in words, and a look at it before a run is paid for."""

from collections.abc import Mapping
from typing import Any

from albat_core.config import RunConfig

PART = 0.1
"""Share of the corpus, and of the rows selected from it, that a quick look reads."""
_STEPS = 6  # a quick look trains so many times fewer steps


def verdict(facts: Mapping[str, Any]) -> str:
    """Return what the selection is expected to be worth, in a sentence.

    Args:
        facts: of the manifest of ``mixing``.
    """
    alpha, multiplier = facts["alpha"], facts["multiplier"]
    (low, high), (least, most) = facts["alpha_interval"], facts["multiplier_interval"]
    if not alpha:
        return (
            f"Do not mix: this corpus does not pay (best alpha {facts['alpha_estimate']:.2f}, "
            f"95% interval {low:.2f} to {high:.2f})."
        )
    return (
        f"Worth {_times(multiplier)} times your data (95% interval {_times(least)} to "
        f"{_times(most)}): mix with alpha = {alpha:.2f} (95% interval {low:.2f} to {high:.2f})."
    )


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}" if value < 100 else "over 100"


def quick_look(config: RunConfig) -> RunConfig:
    """Return a run that reaches the verdict in about a tenth of the time.

    It searches a tenth of each corpus source for a tenth of the rows, with a short surrogate, and
    counts the rows as what they stand for.
    """
    steps = max(config.surrogate.steps // _STEPS, 1)
    every = min(config.surrogate.evaluate_every, max(steps // 4, 1))
    rows = max(round(config.mixture.rows * PART), 16)
    return config.model_copy(
        update={
            "corpus": tuple(
                source.model_copy(update={"share": source.share * PART}) for source in config.corpus
            ),
            "retrieval": config.retrieval.model_copy(
                update={"candidates": max(round(config.retrieval.candidates * PART), rows)}
            ),
            "surrogate": config.surrogate.model_copy(
                update={
                    "steps": steps,
                    "evaluate_every": every,
                    "warmup": min(config.surrogate.warmup, steps // 4),
                }
            ),
            "mixture": config.mixture.model_copy(update={"rows": rows}),
            "mixing": config.mixing.model_copy(
                update={"folds": 1, "rows": min(config.mixing.rows, 128), "stands_for": 1 / PART}
            ),
        }
    )
