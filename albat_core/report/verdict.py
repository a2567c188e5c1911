"""The verdict in words."""

from collections.abc import Mapping
from typing import Any, Literal

Outlook = Literal["likely", "unclear", "unlikely"]


def outlook(alpha: float, least: float, ended_early: bool = False) -> Outlook:
    """Return whether mixing is expected to pay.

    Args:
        alpha: mixing weight that was computed; 0: do not mix.
        least: low end of the interval of what it is worth.
        ended_early: whether surrogates were best at their last step: the theory speaks of trainings
            that are done.
    """
    if not alpha:
        return "unlikely"
    return "likely" if least >= 1 and not ended_early else "unclear"


def expected(facts: Mapping[str, Any]) -> Outlook:
    """Return whether mixing is expected to pay, from the facts of the manifest of ``estimate``."""
    return outlook(facts["alpha"], facts["multiplier_interval"][0], facts["ended_early"])


def verdict(facts: Mapping[str, Any]) -> str:
    """Return what mixing is expected to be worth, in one or two sentences.

    It is likely to pay where all of the interval is 1 or above, unclear where it is not or where
    trainings end too early to tell, and unlikely where the best mixing weight is about 0.

    Args:
        facts: of the manifest of ``estimate``.
    """
    alpha, multiplier = facts["alpha"], facts["multiplier"]
    (low, high), (least, most) = facts["alpha_interval"], facts["multiplier_interval"]
    said = expected(facts)
    if said == "unlikely":
        return (
            f"Unlikely to pay, do not mix: the best alpha is {facts['alpha_estimate']:.2f} "
            f"(95% interval {low:.2f} to {high:.2f})."
        )
    worth = f"{_times(multiplier)} times your data (95% interval {_times(least)} to {_times(most)})"
    mixed = f"with alpha = {alpha:.2f} (95% interval {low:.2f} to {high:.2f})"
    if facts["alpha_estimate"] > alpha:
        best = f"the best is {facts['alpha_estimate']:.2f}, 95% interval {low:.2f} to {high:.2f}"
        mixed = f"with alpha = {alpha:.2f}, the most that is mixed ({best})"
    if said == "likely":
        return f"Likely to pay: worth {worth}, mixed {mixed}."
    if facts["ended_early"]:
        return (
            "Unclear whether it pays: adaptation data alone was still learned from when its steps "
            f"ended, so more steps come first. For a training that is done: worth {worth}, mixed "
            f"{mixed}."
        )
    return f"Unclear whether it pays: worth {worth}, mixed {mixed}. Below 1 it costs."


def verdict_beforehand(facts: Mapping[str, Any]) -> str:
    """Return whether mixing is expected to pay, by a look before the run: in words alone.

    Intervals of such a look held what the run computed in 10 of 14 cases: docs/calibration.md.

    Args:
        facts: of the manifest of ``estimate``.
    """
    words = {
        "likely": "Likely to pay.",
        "unclear": "Unclear whether it pays.",
        "unlikely": "Unlikely to pay.",
    }
    return f"{words[expected(facts)]} How much, the run computes before it trains on a mixture."


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}" if value < 100 else "over 100"
