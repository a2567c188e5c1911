"""The verdict in words."""

from collections.abc import Mapping
from typing import Any


def verdict(facts: Mapping[str, Any]) -> str:
    """Return what the selection is expected to be worth, in a sentence.

    Args:
        facts: of the manifest of ``estimate``.
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
