"""The verdict in words."""

from collections.abc import Mapping
from typing import Any, Literal

Outlook = Literal["likely", "unclear", "unlikely"]


def outlook(alpha: float, least: float) -> Outlook:
    """Return whether mixing is expected to pay.

    Args:
        alpha: mixing weight that was computed; 0: do not mix.
        least: low end of the interval of what it is worth.
    """
    if not alpha:
        return "unlikely"
    return "likely" if least >= 1 else "unclear"


def verdict(facts: Mapping[str, Any]) -> str:
    """Return what mixing is expected to be worth, in one or two sentences.

    It is likely to pay where all of the interval is 1 or above, unclear where it is not, and
    unlikely where the best mixing weight is about 0.

    Args:
        facts: of the manifest of ``estimate``.
    """
    alpha, multiplier = facts["alpha"], facts["multiplier"]
    (low, high), (least, most) = facts["alpha_interval"], facts["multiplier_interval"]
    if outlook(alpha, least) == "unlikely":
        return (
            f"Unlikely to pay, do not mix: the best alpha is {facts['alpha_estimate']:.2f} "
            f"(95% interval {low:.2f} to {high:.2f})."
        )
    worth = f"{_times(multiplier)} times your data (95% interval {_times(least)} to {_times(most)})"
    mixed = f"with alpha = {alpha:.2f} (95% interval {low:.2f} to {high:.2f})"
    if outlook(alpha, least) == "likely":
        return f"Likely to pay: worth {worth}, mixed {mixed}."
    return f"Unclear whether it pays: worth {worth}, mixed {mixed}. Below 1 it costs."


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}" if value < 100 else "over 100"
