"""What became of faults: the one meaning of survived, wrong and told, and the table of them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_MASKS = (  # what differs from one fault to the next, and how a sentence shows it
    (re.compile(r"(?:s3:/)?(?:/[^\s:,;'\"]+)+/"), ""),
    (re.compile(r"http://[\d.:]+/"), ""),
    (re.compile(r"\b[0-9a-f]{12,}(?:\.\.)?\b"), "…"),
    (re.compile(r"\b[0-9a-f]{8}\b"), "…"),
    (re.compile(r"\d+"), "0"),
)
_LONGEST = 200


@dataclass(frozen=True)
class Trial:
    """One fault, after which the run was repeated.

    It is survived where the repeated run ended, every artifact, registry entry and exported file is
    bit for bit that of an undisturbed run but for times, nothing is lost, and whatever was told was
    a sentence. Otherwise it is wrong.

    Args:
        fault: what was done.
        wrong: what is not so; empty where it was survived.
        told: sentences that a person saw.
    """

    fault: str
    wrong: Sequence[str] = ()
    told: Sequence[str] = ()


@dataclass
class Kind:
    """One kind of fault.

    Args:
        name: of the kind.
        silent: what a person sees where nothing is told.
        trials: of it.
    """

    name: str
    silent: str = "nothing: the run goes on"
    trials: list[Trial] = field(default_factory=list)

    @property
    def wrong(self) -> list[Trial]:
        """Those that were not survived."""
        return [trial for trial in self.trials if trial.wrong]

    @property
    def seen(self) -> str:
        """What a person sees most often."""
        sentences = Counter(masked(t.told[0]) if t.told else self.silent for t in self.trials)
        return sentences.most_common(1)[0][0] if sentences else ""


def masked(sentence: str) -> str:
    """Return a sentence without what differs from one fault to the next."""
    text = " ".join(sentence.split())
    for pattern, shown in _MASKS:
        text = pattern.sub(shown, text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def table(kinds: Sequence[Kind]) -> str:
    """Return the table in Markdown, one line a kind, and the sum."""
    lines = [
        "| what is done | times | survived | wrong | what a person sees |",
        "|---|---:|---:|---:|---|",
    ]
    for kind in kinds:
        count, wrong = len(kind.trials), len(kind.wrong)
        seen = kind.seen.replace("|", "\\|")
        lines.append(f"| {kind.name} | {count} | {count - wrong} | {wrong} | {seen} |")
    total = sum(len(kind.trials) for kind in kinds)
    wrong = sum(len(kind.wrong) for kind in kinds)
    lines.append(f"| **all** | {total} | {total - wrong} | {wrong} | |")
    return "\n".join(lines)
